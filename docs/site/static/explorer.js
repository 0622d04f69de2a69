"use strict";
// The explorer: what is chosen stands in the address, after #, and all that is shown follows from it.
// INDEX is from explorer/index.js, which docs/site/explorer.py writes.

const KEYS = ["framework", "kernel", "sampler", "nfe", "duration"];
const LABELS = ["Framework", "Kernel", "Sampler", "Evaluations (NFE)", "Training"];
const SIDES = ["a", "b"];
const KERNELS = { baseline: "baseline", fdm: "FDM" };
const FRECHET = Object.keys(INDEX.metrics)[0];
const SCORES = new Map(INDEX.scores.map((row) => [row.slice(0, 5).join(), row.slice(5)]));
const TRAINED = sorted(INDEX.scores.map((row) => row[3]));
const PRIMARY = { sampler: INDEX.scores[0][1], nfe: INDEX.scores[0][2] }; // which is scored along the training
const START = Object.fromEntries(
  Object.keys(KERNELS).map((kernel, i) => [SIDES[i], `edm,${kernel},${PRIMARY.sampler},${PRIMARY.nfe},1`]),
);
const root = document.getElementById("choose");

function sorted(numbers) {
  return [...new Set(numbers)].sort((one, other) => one - other);
}

function element(name, attributes = {}, ...children) {
  const space = ["svg", "line", "path", "circle", "text"].includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// --- What is chosen -------------------------------------------------------------------------------------------------

const cell = (chosen) => `${chosen.framework}-${chosen.kernel}`;
const evaluations = (sampler) => sorted(INDEX.scores.filter((row) => row[1] === sampler).map((row) => row[2]));
const score = (chosen, metric) => SCORES.get([cell(chosen), chosen.sampler, chosen.nfe, chosen.duration, metric].join());
const model = (chosen) => INDEX.frameworks[chosen.framework] + (chosen.kernel === "fdm" ? "-FDM" : "");
const percent = (share) => `${100 * share} %`;
const setting = (chosen) =>
  `${model(chosen)}, ${INDEX.samplers[chosen.sampler]}, ${chosen.nfe} evaluations` +
  (chosen.duration < 1 ? `, ${percent(chosen.duration)} of the training` : "");

function side(text, otherwise) {
  const words = text.split(",");
  const chosen = Object.fromEntries(KEYS.map((key, i) => [key, words[i]]));
  const known = chosen.framework in INDEX.frameworks && chosen.kernel in KERNELS && chosen.sampler in INDEX.samplers;
  if (!known) return side(otherwise, otherwise);
  const nearest = (numbers, wanted) =>
    numbers.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best));
  chosen.nfe = nearest(evaluations(chosen.sampler), Number(chosen.nfe) || PRIMARY.nfe);
  chosen.duration = nearest(TRAINED, Number(chosen.duration) || 1);
  return chosen;
}

function read() {
  const told = new URLSearchParams(location.hash.slice(1));
  const seed = Math.trunc(Number(told.get("seed")));
  return {
    a: side(told.get("a") ?? START.a, START.a),
    b: side(told.get("b") ?? START.b, START.b),
    seed: seed in INDEX.classes ? seed : 0,
  };
}

function write(state) {
  const part = (chosen) => KEYS.map((key) => chosen[key]).join();
  location.hash = `a=${part(state.a)}&b=${part(state.b)}&seed=${state.seed}`; // which tells of itself by hashchange
}

// --- Controls -------------------------------------------------------------------------------------------------------

function options(select, pairs, value) {
  select.replaceChildren(...pairs.map(([key, text]) => element("option", { value: key }, String(text))));
  select.value = value;
}

function control(id, label, change) {
  const select = element("select", { id });
  select.addEventListener("change", () => {
    const state = read();
    change(state, select.value);
    write(state);
  });
  return element("div", { class: "control" }, element("label", { for: id }, label), select);
}

function build() {
  for (const name of SIDES) {
    const controls = KEYS.map((key, i) =>
      control(`${name}-${key}`, LABELS[i], (state, value) => {
        state[name][key] = value;
        state[name] = side(KEYS.map((one) => state[name][one]).join(), START[name]);
      }),
    );
    const fields = element("fieldset", { class: name }, element("legend", {}, name.toUpperCase()), ...controls);
    const samples = element("div", { id: `${name}-samples`, class: "samples" });
    const along = element("div", { id: `${name}-along`, class: "along" });
    root.append(element("section", { class: `side ${name}`, "aria-label": `Model ${name.toUpperCase()}` }, fields, samples, along));
  }
  const latent = control("seed", "Latent shown along σ", (state, value) => (state.seed = Number(value)));
  root.append(
    element("div", { class: "wide" }, latent, element("p", { id: "told", role: "status" })),
    element("div", { class: "wide", id: "scores" }),
    element("div", { class: "charts wide" }, element("figure", { id: "by-nfe" }), element("figure", { id: "by-duration" })),
  );
}

// --- Pictures -------------------------------------------------------------------------------------------------------

function tile(name, row, column) {
  const columns = INDEX.pictured[name].length + 2;
  const picture = `--columns: ${columns}; --column: ${column}; --row: ${row}; background-image: url("../explorer/${name}.png")`;
  return element("span", { class: "tile", style: picture, "data-row": row });
}

function pictures(name, chosen, state) {
  const sprite = `${cell(chosen)}-${chosen.sampler}-${chosen.nfe}`;
  const samples = document.getElementById(`${name}-samples`);
  const along = document.getElementById(`${name}-along`);
  if (!(sprite in INDEX.pictured) || chosen.duration < 1) {
    const why = chosen.duration < 1 ? "networks within their training are not kept" : "samples of so many evaluations are not drawn";
    samples.replaceChildren(element("p", {}, `No pictures: ${why}. The scores below are on record.`));
    along.replaceChildren();
    return;
  }
  const levels = INDEX.pictured[sprite];
  const shown = element("div", { class: "grid", role: "img" });
  shown.setAttribute("aria-label", `${INDEX.classes.length} samples of ${setting(chosen)}, digits ${INDEX.classes.join(", ")}`);
  INDEX.classes.forEach((_, row) => {
    const picture = tile(sprite, row, levels.length + 1);
    picture.classList.toggle("chosen", row === state.seed);
    picture.addEventListener("click", () => write({ ...read(), seed: row })); // by keyboard: the list of latents
    shown.append(picture);
  });
  samples.replaceChildren(shown);
  const captions = ["latent", ...levels.map((level) => `σ ${Number(level.toPrecision(2))}`), "sample"];
  const strip = captions.map((caption, column) =>
    element("span", { class: "step" }, tile(sprite, state.seed, column), element("span", {}, caption)),
  );
  const digit = INDEX.classes[state.seed];
  const told = `A ${digit}, seed ${state.seed}: D(x; σ) of ${setting(chosen)}, from σ ${levels[0]} to ${levels.at(-1)}, and the sample`;
  along.replaceChildren(element("div", { class: "strip", role: "img", "aria-label": told }, ...strip));
}

// --- Scores ---------------------------------------------------------------------------------------------------------

const short = (number) => (number >= 100 ? number.toFixed(0) : number.toPrecision(3));
const interval = (low, high) => (low === null ? "" : ` [${short(low)}, ${short(high)}]`);

function told(chosen, metric) {
  const found = score(chosen, metric);
  return found ? short(found[0]) + interval(found[1], found[2]) : "not measured";
}

function table(state) {
  const head = ["Score", ...SIDES.map((name) => `${name.toUpperCase()}: ${setting(state[name])}`)];
  const rows = Object.entries(INDEX.metrics).map(([metric, better]) =>
    element("tr", {}, element("th", { scope: "row" }, metric, element("small", {}, ` ${better}`)),
      ...SIDES.map((name) => element("td", {}, told(state[name], metric)))),
  );
  const [floor, low, high] = INDEX.floor;
  const note = `Of ${INDEX.samples} samples each; in brackets the 95 % interval, where one is on record. ` +
    `Of real images the Fréchet distance to other real images is ${short(floor)}${interval(low, high)}.`;
  document.getElementById("scores").replaceChildren(
    element("table", {}, element("caption", {}, note),
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows)),
  );
}

function chart(id, title, ticks, lines) {
  const [left, right, top, bottom] = [44, 312, 8, 168];
  const ends = lines.flatMap((line) => line.points.flatMap(([, , low, high]) => [low, high])).concat(INDEX.floor[0]);
  const lowest = Math.log10(Math.min(...ends)), highest = Math.log10(Math.max(...ends));
  const x = (value) => left + 14 + ((right - left - 28) * ticks.indexOf(value)) / Math.max(ticks.length - 1, 1);
  const y = (value) => bottom - 6 - ((bottom - top - 12) * (Math.log10(value) - lowest)) / (highest - lowest);
  const parts = [element("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` })];
  const label = (text, at) => parts.push(element("text", at, text));
  for (const tick of ticks) label(tick > 1 || id === "by-nfe" ? String(tick) : percent(tick), { x: x(tick), y: bottom + 16, "text-anchor": "middle" });
  for (const value of [5, 10, 20, 50, 100, 200, 500].filter((value) => value >= 10 ** lowest && value <= 10 ** highest)) {
    label(String(value), { x: left - 6, y: y(value) + 4, "text-anchor": "end" });
    parts.push(element("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
  }
  parts.push(element("line", { class: "floor", x1: left, x2: right, y1: y(INDEX.floor[0]), y2: y(INDEX.floor[0]) }));
  lines.forEach(({ name, points, now }, i) => {
    const shift = i ? 3 : -3; // so that one interval does not hide the other
    parts.push(element("path", { class: `line ${name}`, d: `M${points.map(([at, value]) => `${x(at) + shift} ${y(value)}`).join("L")}` }));
    for (const [at, value, low, high] of points) {
      parts.push(element("line", { class: `bar ${name}`, x1: x(at) + shift, x2: x(at) + shift, y1: y(low), y2: y(high) }));
      parts.push(element("circle", { class: `point ${name}`, cx: x(at) + shift, cy: y(value), r: at === now ? 5 : 2.5 }));
    }
  });
  const words = lines.map(({ name, text, points }) => `${name.toUpperCase()}, ${text}: ${points.map(([at, value]) => `${short(value)} at ${at}`).join(", ")}`);
  const drawing = element("svg", { viewBox: "0 0 320 192", role: "img", "aria-label": `${title}. ${words.join(". ")}.` }, ...parts);
  const key = lines.map(({ name, text }) => element("span", { class: `key ${name}` }, `${name.toUpperCase()}: ${text}`));
  document.getElementById(id).replaceChildren(drawing, element("figcaption", {}, `${title}; dotted: real images`, ...key));
}

function curves(state) {
  const of = (chosen, change) => [{ ...chosen, ...change }].flatMap((one) => score(one, FRECHET) ? [score(one, FRECHET)] : []);
  const byNfe = SIDES.map((name) => {
    const chosen = state[name];
    const points = evaluations(chosen.sampler).flatMap((nfe) => of(chosen, { nfe, duration: 1 }).map((found) => [nfe, ...found]));
    return { name, text: `${model(chosen)}, ${INDEX.samplers[chosen.sampler]}`, points, now: chosen.nfe };
  });
  const byDuration = SIDES.map((name) => {
    const chosen = state[name];
    const points = TRAINED.flatMap((duration) => of(chosen, { ...PRIMARY, duration }).map((found) => [duration, ...found]));
    return { name, text: model(chosen), points, now: chosen.duration };
  });
  const ticks = sorted(byNfe.flatMap((line) => line.points.map(([nfe]) => nfe)));
  chart("by-nfe", "Fréchet distance by evaluations, after the whole training", ticks, byNfe);
  chart("by-duration", `Fréchet distance by training, ${INDEX.samplers[PRIMARY.sampler]}, ${PRIMARY.nfe} evaluations`, TRAINED, byDuration);
}

// --- The page -------------------------------------------------------------------------------------------------------

function render() {
  const state = read();
  const seeds = [...INDEX.classes.keys()].sort((one, other) => INDEX.classes[one] - INDEX.classes[other]);
  const latents = seeds.map((seed) => [seed, `a ${INDEX.classes[seed]}, seed ${seed}`]);
  options(document.getElementById("seed"), latents, state.seed);
  for (const name of SIDES) {
    const chosen = state[name];
    const choices = {
      framework: Object.entries(INDEX.frameworks),
      kernel: Object.entries(KERNELS),
      sampler: Object.entries(INDEX.samplers),
      nfe: evaluations(chosen.sampler).map((nfe) => [nfe, nfe]),
      duration: TRAINED.map((share) => [share, percent(share)]),
    };
    for (const key of KEYS) options(document.getElementById(`${name}-${key}`), choices[key], chosen[key]);
    pictures(name, chosen, state);
  }
  const words = SIDES.map((name) => `${name.toUpperCase()}, ${setting(state[name])}: ${told(state[name], FRECHET)}`);
  document.getElementById("told").textContent = `${FRECHET}, lower is better. ${words.join("; ")}.`;
  table(state);
  curves(state);
}

build();
render();
addEventListener("hashchange", render);
