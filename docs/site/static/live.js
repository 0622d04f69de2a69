"use strict";
// Samples drawn in the browser: Heun's method of the study (fdm/samplers/heun.py, without churn) on its networks as ONNX,
// which onnxruntime-web evaluates. What is needed for it is loaded with the first drawing. INDEX.live has the latents and
// each network's range of noise levels; docs/site/live.py writes the networks.

const LIVE = INDEX.live;
const LATENTS = new Float32Array(Uint8Array.from(atob(LIVE.latents), (letter) => letter.charCodeAt(0)).buffer);
const COUNT = INDEX.classes.length;
const [SIDE, ROW, DIGITS, RHO] = [8, 6, 10, 7]; // pixels of a picture, pictures in a row, classes, Karras' exponent
const networks = new Map();
let runtime, drawing = 0;

// Karras' noise levels (EDM, arXiv 2206.00364, eq. 5): `steps` of them, from the highest to the lowest, and then 0.
function levels([low, high], steps) {
  const [from, to] = [high ** (1 / RHO), low ** (1 / RHO)];
  return [...Array(steps).keys()].map((i) => (from + (i / Math.max(steps - 1, 1)) * (to - from)) ** RHO).concat(0);
}

// Algorithm 2 of the same paper, without churn. Yields D(x; sigma) with each step, and the sample in the end.
async function* heun(denoise, x, sigmas) {
  for (let i = 0; i + 1 < sigmas.length; i++) {
    const [sigma, next] = [sigmas[i], sigmas[i + 1]];
    const clean = await denoise(x, sigma);
    yield clean;
    const slope = x.map((value, j) => (value - clean[j]) / sigma);
    let ahead = x.map((value, j) => value + (next - sigma) * slope[j]);
    if (next > 0) { // at sigma 0 the slope is undefined: the last step is Euler's
      const there = await denoise(ahead, next);
      ahead = x.map((value, j) => value + ((next - sigma) * (slope[j] + (ahead[j] - there[j]) / next)) / 2);
    }
    x = ahead;
  }
  yield x;
}

async function network(name) {
  runtime ??= import("../live/ort.wasm.min.mjs").then((ort) => {
    ort.env.wasm.wasmPaths = new URL("../live/", location.href).href;
    ort.env.wasm.numThreads = 1; // more need headers that few servers send
    return ort;
  });
  const ort = await runtime;
  if (!networks.has(name)) networks.set(name, ort.InferenceSession.create(`../live/${name}-0.onnx`));
  const session = await networks.get(name);
  return (labels) => async (x, sigma) => {
    const { D } = await session.run({
      x: new ort.Tensor("float32", Float32Array.from(x), [COUNT, 1, SIDE, SIDE]),
      sigma: new ort.Tensor("float32", [sigma], []),
      labels: new ort.Tensor("float32", labels, [COUNT, DIGITS]),
    });
    return Float64Array.from(D.data);
  };
}

function show(canvas, x) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  image.data.fill(110);
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  x.forEach((value, i) => {
    const [picture, pixel] = [Math.floor(i / SIDE ** 2), i % SIDE ** 2];
    const column = (picture % ROW) * (SIDE + 1) + (pixel % SIDE);
    const row = Math.floor(picture / ROW) * (SIDE + 1) + Math.floor(pixel / SIDE);
    image.data.fill(Math.round(Math.min(Math.max(value * 127.5 + 127.5, 0), 255)), 4 * (row * canvas.width + column), 4 * (row * canvas.width + column) + 3);
  });
  context.putImageData(image, 0, 0);
  canvas.samples = x; // the numbers behind the picture
}

async function draw() {
  const mine = ++drawing, state = read(), nfe = Number(document.getElementById("live-nfe").value);
  const digit = document.getElementById("live-class").value, said = document.getElementById("live-said");
  const labels = new Float32Array(COUNT * DIGITS);
  INDEX.classes.forEach((own, i) => (labels[i * DIGITS + Number(digit === "" ? own : digit)] = 1));
  const seconds = [];
  said.textContent = "Loading.";
  try {
    for (const side of SIDES) {
      const of = await network(cell(state[side])), sigmas = levels(LIVE.range[cell(state[side])], (nfe + 1) / 2);
      const began = performance.now(), canvas = document.getElementById(`${side}-live`);
      document.getElementById(`${side}-live-name`).textContent = `${side.toUpperCase()}: ${model(state[side])}`;
      for await (const x of heun(of(labels), Float64Array.from(LATENTS, (value) => value * sigmas[0]), sigmas)) {
        if (mine !== drawing) return; // something else was chosen meanwhile
        show(canvas, x);
        await new Promise(requestAnimationFrame);
      }
      canvas.setAttribute("aria-label", `${COUNT} samples of ${model(state[side])}, drawn here`);
      seconds.push(`${side.toUpperCase()}: ${model(state[side])}, ${((performance.now() - began) / 1000).toFixed(1)} s`);
    }
    said.textContent = `Drawn here, ${COUNT} samples, Heun, ${nfe} evaluations. ${seconds.join("; ")}.`;
  } catch (error) {
    said.textContent = `It could not be drawn here: ${error.message}`;
  }
}

function stand() {
  const place = document.getElementById("live");
  if (!LIVE.ready || location.protocol === "file:") {
    const why = LIVE.ready ? "a browser loads no networks from a disk: serve the folder, as with python -m http.server" : "npm was not there when this site was built";
    return place.replaceChildren(element("p", {}, `Nothing is drawn here: ${why}.`));
  }
  const digits = element("select", { id: "live-class" }, element("option", { value: "" }, "as above"));
  digits.append(...[...Array(DIGITS).keys()].map((digit) => element("option", { value: digit }, String(digit))));
  const nfe = element("input", { id: "live-nfe", type: "range", min: 1, max: 79, step: 2, value: PRIMARY.nfe });
  const number = element("output", { for: "live-nfe" }, nfe.value);
  const button = element("button", { type: "button", id: "live-draw" }, "Draw");
  nfe.addEventListener("input", () => (number.textContent = nfe.value));
  button.addEventListener("click", draw);
  const again = () => drawing && draw();
  for (const each of [digits, nfe]) each.addEventListener("change", again);
  addEventListener("hashchange", again);
  const [width, height] = [ROW, COUNT / ROW].map((many) => many * (SIDE + 1) - 1);
  const canvases = SIDES.map((side) =>
    element("div", { class: `side ${side}` }, element("p", { id: `${side}-live-name` }, side.toUpperCase()),
      element("canvas", { id: `${side}-live`, width, height, role: "img", "aria-label": `Model ${side.toUpperCase()}: nothing is drawn yet` })));
  place.replaceChildren(
    element("div", { class: "wide" },
      element("div", { class: "control" }, element("label", { for: "live-class" }, "Digit"), digits),
      element("div", { class: "control" }, element("label", { for: "live-nfe" }, "Evaluations (NFE)"), nfe, number),
      element("div", { class: "control" }, button),
      element("p", { id: "live-said", role: "status" }, "The runtime and two networks are loaded first: some 15 MB.")),
    ...canvases,
  );
}

stand();
