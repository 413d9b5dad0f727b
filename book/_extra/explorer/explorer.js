// The sensitivity explorer: choose a data set, slide the noise level, point at a pixel, and see the
// row of the Wiener filter that makes this pixel, computed here from the data's eigenvectors.
//
// A classic script, not a module, and not in _static: a page opened as a file may not import
// modules or fetch data, and Jupyter Book would load a script in _static on every page. For the same
// reason each data set is a classic script (experiments/make_explorer_data.py writes them), which
// leaves its numbers on its own <script> element.
(() => {
  "use strict";

  const HERE = document.currentScript.src;
  // matplotlib's magma, every sixteenth colour; between them the page interpolates.
  const MAGMA = [
    "000004", "0b0924", "20114b", "3b0f70", "57157e", "721f81", "8c2981", "a8327d", "c43c75",
    "de4968", "f1605d", "fa7f5e", "fe9f6d", "febf84", "fddea0", "fcfdbf",
  ].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const NEAR = 3; // pixels: energy within this distance counts as near
  const CURVE = Array.from({ length: 13 }, (_, i) => 10 ** (2 - i / 3)); // noise levels of the radii
  const RADIUS_STEP = 1 / 9; // pixels, of the radii in the data
  const RADII = 27; // the curve's axis ends here, in pixels: a corner of 32 x 32 sees no farther
  const PLOT = { left: 36, right: 292, top: 12, bottom: 168 }; // in units of the curve's view box

  // --- numbers ------------------------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const float32 = (text) => new Float32Array(bytes(text).buffer);
  const bfloat16 = (text) =>
    new Float32Array(Uint32Array.from(new Uint16Array(bytes(text).buffer), (v) => v << 16).buffer);

  // The statistics a data script holds: eigenvectors as float32, one row of `count` a pixel.
  function decode(basis) {
    const eigenvalues = float32(basis.eigenvalues);
    const size = eigenvalues.length;
    const columns = basis.blocks.map((block) => float32(block.columns));
    const count = columns.reduce((sum, block) => sum + block.length, 0);
    const vectors = new Float32Array(size * count);
    let [first, fine] = [0, 0];
    basis.blocks.forEach((block, b) => {
      const width = columns[b].length;
      const rows = bfloat16(block.rows);
      const values = bytes(block.values);
      const whole = block.bits === 8
        ? (i) => (values[i] << 24) >> 24
        : (i) => ((values[i >> 1] >> (4 * (i & 1))) & 15) - 8;
      for (let m = 0; m < size; m++) {
        for (let i = 0; i < width; i++) {
          vectors[m * count + first + i] = whole(m * width + i) * rows[m] * columns[b][i];
        }
      }
      first += width;
      if (block.bits === 8) fine = first;
    });
    const [, height, width] = basis.shape;
    const { about, pixel } = basis;
    const [mean, radii] = [bfloat16(basis.mean), bytes(basis.radii)];
    return { about, pixel, height, width, size, count, fine, eigenvalues, vectors, mean, radii };
  }

  // W w for the image w that is 1 at `pixels` and 0 elsewhere; for one pixel, its row of W.
  // W = U diag(s) U^T, s = L / (L + sigma^2), is split into r and U diag(s - r) U^T. Components
  // that are missing count as all alike: r is the mean of their s, as in locality.stats.PCA. If none
  // is missing, any r is right, and rounding matters least where r is the mean s of the coarsely
  // rounded ones in w.
  function wienerProduct(basis, sigma, pixels) {
    const { size, count, fine, eigenvalues, vectors } = basis;
    const complete = count === size;
    const shrinkage = (i) => eigenvalues[i] / (eigenvalues[i] + sigma * sigma);
    const coordinates = new Float64Array(count);
    for (const m of pixels) {
      for (let i = 0; i < count; i++) coordinates[i] += vectors[m * count + i];
    }
    const square = (i) => coordinates[i] ** 2;
    let [rest, total, norm] = [0, 0, 0];
    for (let i = complete ? fine : count; i < size; i++) {
      const weight = complete ? square(i) : 1;
      rest += weight * shrinkage(i);
      total += weight;
    }
    rest /= total;
    for (let i = 0; i < count; i++) norm += square(i);
    const weights = new Float64Array(count);
    for (let i = 0; i < count; i++) weights[i] = (shrinkage(i) - rest) * coordinates[i];
    const row = new Float64Array(size);
    for (let n = 0, at = 0; n < size; n++) {
      let sum = 0;
      for (let i = 0; i < count; i++) sum += weights[i] * vectors[at++];
      row[n] = sum;
    }
    const length = norm / pixels.length; // 1 but for rounding
    for (const m of pixels) row[m] += complete ? rest * length : rest;
    return row;
  }
  const wienerRow = (basis, sigma, m) => wienerProduct(basis, sigma, [m]);

  // Effective radius of pixel `m`, in pixels, from the complete statistics: in rows of rounded
  // eigenvectors the little that rounding spreads over the image would add to it.
  const radiusAt = (basis, i, m) => basis.radii[m * CURVE.length + i] * RADIUS_STEP;
  function radius(basis, sigma, m) {
    const place = 3 * (2 - Math.log10(sigma));
    const i = Math.max(0, Math.min(CURVE.length - 2, Math.floor(place)));
    const [left, right] = [radiusAt(basis, i, m), radiusAt(basis, i + 1, m)];
    return left + (place - i) * (right - left);
  }

  // What else the readout says of a row; energy is the square, as in locality.sensitivity.
  function measure(basis, row, m) {
    const { width } = basis;
    const [y, x] = [Math.floor(m / width), m % width];
    let [peak, energy, near] = [0, 0, 0];
    row.forEach((value, n) => {
      const distance2 = (Math.floor(n / width) - y) ** 2 + ((n % width) - x) ** 2;
      peak = Math.max(peak, Math.abs(value));
      energy += value * value;
      if (distance2 <= NEAR * NEAR) near += value * value;
    });
    return {
      peak,
      near: near / energy,
      mirror: Math.abs(row[y * width + width - 1 - x]) / peak,
    };
  }

  // Load a data set once; all explorers of a page share it.
  const loaded = new Map();
  function load(name) {
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = new URL(`${name}.js`, HERE).href;
        script.onload = () => { resolve(decode(script.basis)); script.remove(); };
        script.onerror = () => { loaded.delete(name); reject(new Error(`${script.src} did not load`)); };
        document.head.append(script);
      }));
    }
    return loaded.get(name);
  }

  // --- drawing ------------------------------------------------------------------------------------

  function magma(share) {
    const place = Math.sqrt(share) * (MAGMA.length - 1); // square root: weak distant parts show
    const i = Math.min(Math.floor(place), MAGMA.length - 2);
    return MAGMA[i].map((low, c) => low + (place - i) * (MAGMA[i + 1][c] - low));
  }

  function paint(canvas, basis, colour) {
    [canvas.width, canvas.height] = [basis.width, basis.height];
    const context = canvas.getContext("2d");
    const picture = context.createImageData(basis.width, basis.height);
    for (let n = 0; n < basis.size; n++) picture.data.set([...colour(n), 255], 4 * n);
    context.putImageData(picture, 0, 0);
  }

  const readable = (value) => (value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1)
    : value >= 0.1 ? value.toFixed(2) : value.toFixed(3));
  const percent = (share) => (share < 0.001 ? "below 0.1%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);
  const plotX = (sigma) => PLOT.left + ((2 - Math.log10(sigma)) / 4) * (PLOT.right - PLOT.left);
  const plotY = (radius) => PLOT.bottom - (radius / RADII) * (PLOT.bottom - PLOT.top);

  function axes() {
    const across = [0, 8, 16, 24].map((radius) => {
      const y = plotY(radius);
      return `<line class="grid" x1="${PLOT.left}" x2="${PLOT.right}" y1="${y}" y2="${y}"/>
        <text x="${PLOT.left - 6}" y="${y + 4}" text-anchor="end">${radius}</text>`;
    });
    const along = [100, 10, 1, 0.1, 0.01].map((sigma) => {
      const x = plotX(sigma);
      return `<line class="grid" x1="${x}" x2="${x}" y1="${PLOT.bottom}" y2="${PLOT.bottom + 4}"/>
        <text x="${x}" y="${PLOT.bottom + 17}" text-anchor="middle">${sigma}</text>`;
    });
    return across.concat(along).join("");
  }

  const rings = `<svg class="explorer-rings" aria-hidden="true">
    <circle class="under" r=".9"/><circle class="ring" r=".9"/>
    <circle class="under" r=".9"/><circle class="ring mirror" r=".9"/></svg>`;
  const panel = `
    <div class="explorer-data"><label>Data <select></select></label> <span></span></div>
    <div class="explorer-pixels" tabindex="0" role="application" aria-roledescription="pixel picker"
         aria-label="Pixel: the arrow keys move it">
      <div><p>Mean image</p><div class="explorer-stage"><canvas></canvas>${rings}</div>
        <p class="explorer-key"><span class="ring"></span> pixel
          <span class="ring mirror"></span> mirror pixel</p></div>
      <div><p>What it sees</p><div class="explorer-stage"><canvas></canvas>${rings}</div>
        <div class="explorer-bar" aria-hidden="true"></div>
        <p class="explorer-ticks" aria-hidden="true"><span>0</span><span>0.1</span><span>0.5</span>
          <span>1</span></p></div>
    </div>
    <div class="explorer-side">
      <p>How far it sees <small>radius in px</small></p>
      <svg class="explorer-curve" viewBox="0 0 300 188" aria-hidden="true">${axes()}
        <line class="now" y1="${PLOT.top}" y2="${PLOT.bottom}"/><polyline/><circle r="4.5"/></svg>
      <label class="explorer-sigma"><input type="range" min="-2" max="2" step="0.02">
        <span>Noise level <i>σ</i> = <output></output></span></label>
    </div>
    <dl class="explorer-readout" aria-live="polite" aria-atomic="true">
      <div><dt>Row, column</dt><dd data-say="pixel"></dd></div>
      <div><dt>Noise level</dt><dd data-say="sigma"></dd></div>
      <div><dt>Effective radius</dt><dd data-say="radius"></dd></div>
      <div><dt>Energy within ${NEAR} px</dt><dd data-say="near"></dd></div>
      <div><dt>At the mirror pixel</dt><dd data-say="mirror"></dd></div>
    </dl>
    <p class="explorer-hint">Point at a pixel; click or tap to keep it, or move it with the arrow keys.</p>`;

  // --- the figure ---------------------------------------------------------------------------------

  function explorer(figure) {
    const live = document.createElement("div");
    live.className = "explorer-live";
    live.innerHTML = panel;
    const find = (selector) => live.querySelector(selector);
    const [select, slider, pixels, curve] =
      ["select", "input", ".explorer-pixels", ".explorer-curve"].map(find);
    const [meanCanvas, fieldCanvas] = live.querySelectorAll("canvas");
    const stages = live.querySelectorAll(".explorer-stage");
    const readout = find(".explorer-readout");
    find(".explorer-bar").style.background =
      `linear-gradient(to right, ${MAGMA.map(([r, g, b]) => `rgb(${r} ${g} ${b})`)})`;
    for (const [name, label] of Object.entries(JSON.parse(figure.dataset.sets))) {
      select.add(new Option(label, name));
    }
    slider.value = -Math.log10(figure.dataset.sigma);

    let basis = null;
    let chosen = 0; // the pixel that stays
    let hovered = null; // the pixel under the mouse, which shows while it is there
    let frame = 0;
    let quiet = 0;
    const sigma = () => 10 ** -slider.value;

    function draw() {
      frame = 0;
      const m = hovered ?? chosen;
      const [y, x] = [Math.floor(m / basis.width), m % basis.width];
      const row = wienerRow(basis, sigma(), m);
      const seen = measure(basis, row, m);
      const far = radius(basis, sigma(), m);
      paint(fieldCanvas, basis, (n) => magma(Math.abs(row[n]) / seen.peak));
      for (const circle of live.querySelectorAll(".explorer-rings circle")) {
        const opposite = circle.matches(".mirror, .ring + .under");
        circle.setAttribute("cx", (opposite ? basis.width - 1 - x : x) + 0.5);
        circle.setAttribute("cy", y + 0.5);
      }
      const points = CURVE.map((s, i) => `${plotX(s)},${plotY(radiusAt(basis, i, m))}`);
      curve.querySelector("polyline").setAttribute("points", points.join(" "));
      curve.querySelector("circle").setAttribute("cx", plotX(sigma()));
      curve.querySelector("circle").setAttribute("cy", plotY(far));
      curve.querySelector(".now").setAttribute("x1", plotX(sigma()));
      curve.querySelector(".now").setAttribute("x2", plotX(sigma()));
      find("output").textContent = readable(sigma());
      slider.setAttribute("aria-valuetext", readable(sigma()));
      const words = {
        pixel: `${y}, ${x}`,
        sigma: readable(sigma()),
        radius: `${far.toFixed(1)} px`,
        near: percent(seen.near),
        mirror: `${percent(seen.mirror)} of peak`,
      };
      for (const [key, text] of Object.entries(words)) find(`[data-say=${key}]`).textContent = text;
      clearTimeout(quiet);
      quiet = setTimeout(() => readout.setAttribute("aria-busy", "false"), 300);
    }

    // One drawing a frame, however often things move; a screen reader waits until they rest.
    function redraw() {
      readout.setAttribute("aria-busy", "true");
      if (basis && !frame) frame = requestAnimationFrame(draw);
    }

    async function choose(name) {
      try {
        const next = await load(name);
        if (name !== select.value) return; // another one was chosen meanwhile
        basis = next;
      } catch (error) {
        find(".explorer-data span").textContent = error.message;
        return;
      }
      chosen = basis.pixel[0] * basis.width + basis.pixel[1];
      hovered = null;
      paint(meanCanvas, basis, (n) => Array(3).fill(255 * (basis.mean[n] + 1) / 2));
      for (const svg of live.querySelectorAll(".explorer-rings")) {
        svg.setAttribute("viewBox", `0 0 ${basis.width} ${basis.height}`);
      }
      find(".explorer-data span").textContent = basis.about;
      redraw();
    }

    function under(event) {
      const box = event.currentTarget.getBoundingClientRect();
      const place = (at, start, length, count) =>
        Math.max(0, Math.min(count - 1, Math.floor(((at - start) / length) * count)));
      return place(event.clientY, box.top, box.height, basis.height) * basis.width
        + place(event.clientX, box.left, box.width, basis.width);
    }

    for (const stage of stages) {
      stage.addEventListener("pointerdown", (event) => { chosen = under(event); redraw(); });
      stage.addEventListener("pointermove", (event) => {
        if (event.buttons) chosen = under(event);
        hovered = event.pointerType === "mouse" ? under(event) : null;
        redraw();
      });
      stage.addEventListener("pointerleave", () => { hovered = null; redraw(); });
    }
    pixels.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const inside = (value, count) => Math.max(0, Math.min(count - 1, value));
      const [y, x] = [Math.floor(chosen / basis.width), chosen % basis.width];
      chosen = inside(y + step[0], basis.height) * basis.width + inside(x + step[1], basis.width);
      hovered = null;
      redraw();
    });
    slider.addEventListener("input", redraw);
    select.addEventListener("change", () => choose(select.value));

    // The picture stays in place until the first data set is there, and for good if it never comes.
    const picture = figure.querySelector("img");
    const ready = choose(select.value).then(() => {
      if (!basis) throw new Error(find(".explorer-data span").textContent);
      picture.replaceWith(live);
      figure.classList.add("is-live");
    });
    ready.catch((error) => console.error(error));

    // For tests: the numbers, without the drawing.
    figure.explorer = {
      ready,
      row: async (name, level, m) => Array.from(wienerRow(await load(name), level, m)),
      measure: async (name, level, m) => {
        const statistics = await load(name);
        const row = wienerRow(statistics, level, m);
        return { radius: radius(statistics, level, m), ...measure(statistics, row, m) };
      },
    };
  }

  document.querySelectorAll("figure.explorer").forEach(explorer);
  window.sensitivity = { load, magma, paint, readable, wienerProduct, wienerRow }; // for shaper.js
})();
