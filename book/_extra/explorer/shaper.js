// Hide a shape of your own: draw it, and see at once what a pixel of the best linear denoiser looks at
// when every image has got this shape with a random amplitude. Loaded after explorer.js, whose data
// and numbers it uses.
(() => {
  "use strict";

  const { load, magma, paint, readable, wienerProduct, wienerRow } = window.sensitivity;
  const DATA = "fashion-mnist";
  const RING = [86, 180, 233];
  // The noise stops at 0.2: below, the rounded eigenvectors know too little of what is left of w.

  // Row `m` of the Wiener filter when images gain a * w, w being 1 at `shape`, and a has `variance`:
  // W + g g^T / (sigma^2 / variance + w . g) with g = w - W w, the chapter's rank-one update.
  function shapedRow(basis, sigma, m, shape, variance) {
    const row = wienerRow(basis, sigma, m);
    if (!shape.length || !variance) return row;
    const removed = wienerProduct(basis, sigma, shape).map((value) => -value);
    for (const n of shape) removed[n] += 1;
    const overlap = shape.reduce((sum, n) => sum + removed[n], 0);
    const gain = removed[m] / ((sigma * sigma) / variance + overlap);
    return row.map((value, n) => value + gain * removed[n]);
  }

  const stage = (title) => `<div><p>${title}</p><div class="explorer-stage"><canvas></canvas>
    <svg class="explorer-rings" viewBox="0 0 28 28" aria-hidden="true"><circle class="under" r=".9"/>
    <circle class="ring" r=".9"/></svg></div></div>`;
  const panel = `
    <div class="explorer-data shaper-tools" role="group" aria-label="Drawing">
      <label><input type="checkbox" checked> Draw</label>
      <button type="button">Clear</button><button type="button">Letter W</button>
      <span>Unticked, a click chooses the pixel to look from.</span></div>
    <div class="explorer-pixels shaper-pixels" tabindex="0" role="application"
         aria-roledescription="drawing"
         aria-label="Drawing: the arrow keys move the pixel, the space bar draws or erases there">
      ${stage("Your shape")}${stage("Sees without it")}${stage("Sees with it")}</div>
    <label class="shaper-slider"><input type="range" min="-1.5" max="0.7" step="0.02">
      <span>Noise level <i>σ</i> = <output></output></span></label>
    <label class="shaper-slider"><input type="range" min="0" max="2" step="0.02">
      <span>Deviation of the amplitude = <output></output></span></label>
    <dl class="explorer-readout shaper-readout" aria-live="polite" aria-atomic="true">
      <div><dt>Row, column</dt><dd data-say="pixel"></dd></div>
      <div><dt>On the shape</dt><dd data-say="inside"></dd></div>
      <div><dt>Response to the rest of the shape, without</dt><dd data-say="before"></dd></div>
      <div><dt>With</dt><dd data-say="after"></dd></div>
    </dl>`;

  function shaper(figure) {
    const live = document.createElement("div");
    live.className = "explorer-live shaper-live";
    live.innerHTML = panel;
    const find = (selector) => live.querySelector(selector);
    const pen = find("input[type=checkbox]");
    const [noise, amplitude] = live.querySelectorAll("input[type=range]");
    const outputs = live.querySelectorAll("output");
    const canvases = live.querySelectorAll("canvas");
    const [clear, letter] = live.querySelectorAll("button");
    const pixels = find(".explorer-pixels");
    const readout = find(".explorer-readout");
    const original = figure.dataset.shape.trim().split(/\s+/).map(Number);
    let shape = new Set(original);
    let chosen = Number(figure.dataset.pixel);
    noise.value = -Math.log10(figure.dataset.sigma);
    amplitude.value = figure.dataset.amplitude;

    let basis = null;
    let [frame, quiet, erasing] = [0, 0, false];

    function draw() {
      frame = 0;
      const [sigma, deviation] = [10 ** -noise.value, Number(amplitude.value)];
      const others = [...shape].filter((n) => n !== chosen);
      const rows = [
        wienerRow(basis, sigma, chosen),
        shapedRow(basis, sigma, chosen, [...shape], deviation ** 2),
      ];
      const peak = Math.max(...rows.map((row) => Math.max(...row.map(Math.abs)))); // one scale
      paint(canvases[0], basis, (n) =>
        (shape.has(n) ? RING : Array(3).fill(255 * (basis.mean[n] + 1) / 2)));
      rows.forEach((row, i) => paint(canvases[i + 1], basis, (n) => magma(Math.abs(row[n]) / peak)));
      for (const circle of live.querySelectorAll("circle")) {
        circle.setAttribute("cx", (chosen % basis.width) + 0.5);
        circle.setAttribute("cy", Math.floor(chosen / basis.width) + 0.5);
      }
      const mean = (row) => (others.length
        ? (others.reduce((sum, n) => sum + row[n], 0) / others.length).toFixed(4) : "no shape");
      const words = {
        pixel: `${Math.floor(chosen / basis.width)}, ${chosen % basis.width}`,
        inside: shape.has(chosen) ? "yes" : "no",
        before: mean(rows[0]),
        after: mean(rows[1]),
      };
      for (const [key, text] of Object.entries(words)) find(`[data-say=${key}]`).textContent = text;
      [readable(sigma), deviation.toFixed(2)].forEach((text, i) => {
        outputs[i].textContent = text;
        [noise, amplitude][i].setAttribute("aria-valuetext", text);
      });
      clearTimeout(quiet);
      quiet = setTimeout(() => readout.setAttribute("aria-busy", "false"), 300);
    }

    function redraw() {
      readout.setAttribute("aria-busy", "true");
      if (basis && !frame) frame = requestAnimationFrame(draw);
    }

    function mark(n) {
      if (erasing) shape.delete(n); else shape.add(n);
    }

    live.querySelectorAll(".explorer-stage").forEach((place, i) => {
      const under = (event) => {
        const box = place.getBoundingClientRect();
        const at = (position, start, length, count) =>
          Math.max(0, Math.min(count - 1, Math.floor(((position - start) / length) * count)));
        return at(event.clientY, box.top, box.height, basis.height) * basis.width
          + at(event.clientX, box.left, box.width, basis.width);
      };
      const touch = (event) => {
        if (i === 0 && pen.checked) mark(under(event)); else chosen = under(event);
        redraw();
      };
      place.addEventListener("pointerdown", (event) => {
        erasing = shape.has(under(event));
        touch(event);
      });
      place.addEventListener("pointermove", (event) => { if (event.buttons) touch(event); });
    });
    pixels.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step && event.key !== " ") return;
      event.preventDefault();
      if (step) {
        const inside = (value, count) => Math.max(0, Math.min(count - 1, value));
        chosen = inside(Math.floor(chosen / basis.width) + step[0], basis.height) * basis.width
          + inside((chosen % basis.width) + step[1], basis.width);
      } else {
        erasing = shape.has(chosen);
        mark(chosen);
      }
      redraw();
    });
    clear.addEventListener("click", () => { shape = new Set(); redraw(); });
    letter.addEventListener("click", () => { shape = new Set(original); redraw(); });
    noise.addEventListener("input", redraw);
    amplitude.addEventListener("input", redraw);

    // The picture stays until the data are there, and for good if they never come.
    const ready = load(DATA).then((found) => {
      basis = found;
      figure.querySelector("img").replaceWith(live);
      figure.classList.add("is-live");
      redraw();
    });
    ready.catch((error) => console.error(error));

    // For tests: the numbers, without the drawing.
    figure.shaper = {
      row: async (sigma, m, pixelsOf, variance) =>
        Array.from(shapedRow(await load(DATA), sigma, m, pixelsOf, variance)),
    };
  }

  document.querySelectorAll("figure.shaper").forEach(shaper);
})();
