"use strict";
// A box that scrolls can be reached by keyboard, and a figure that is shown small opens at its own size.

function boxes() {
  for (const box of document.querySelectorAll("pre, div.math, .cell_output, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function larger(image) {
  if (image.closest("a") || image.naturalWidth < 1.2 * image.clientWidth) return;
  const link = document.createElement("a");
  link.href = image.src;
  image.replaceWith(link);
  link.append(image);
}

addEventListener("load", () => {
  boxes();
  document.querySelectorAll("article img").forEach(larger);
});
addEventListener("resize", boxes);
