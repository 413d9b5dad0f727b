// Measurements that the browser tests take on an open page: structure, contrast, overflow.
(() => {
  const main = () => document.querySelector("#main-content") ?? document.body;
  const visible = (element) => element.checkVisibility({ visibilityProperty: true });
  const text = (element) => element.textContent.replace(/\s+/g, " ").trim();
  const describe = (element) => {
    const name = element.className.baseVal ?? element.className;
    return `<${element.localName} class="${name}"> ${text(element).slice(0, 60)}`;
  };

  function structure() {
    const article = document.querySelector("article") ?? document.body;
    const headings = [...article.querySelectorAll("h1, h2, h3, h4, h5, h6")];
    const name = (element) =>
      element.getAttribute("aria-label") || element.title || text(element) ||
      element.labels?.[0]?.textContent || element.placeholder ||
      element.querySelector("img")?.alt || element.dataset.bsTitle;
    const controls = [...document.querySelectorAll("a[href], button, input, select, textarea")];
    const formulas = [...article.querySelectorAll(".math")];
    return {
      lang: document.documentElement.lang,
      title: document.title,
      h1: [...document.querySelectorAll("h1")].filter(visible).length,
      headings: headings.map((heading) => [Number(heading.localName[1]), text(heading)]),
      images: [...main().querySelectorAll("img")]
        .filter((image) => !image.alt.trim())
        .map((image) => image.src.slice(0, 100)),
      broken: [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src),
      formulas: formulas.length,
      undrawn: formulas.filter((f) => !f.querySelector("mjx-container svg")).map(text),
      wrong: [...article.querySelectorAll('mjx-merror, [data-mjx-error], mjx-container [fill="red"]')].map(text),
      unnamed: controls
        .filter((control) => visible(control) && control.type !== "hidden" && !name(control)?.trim())
        .map(describe),
      positive: [...document.querySelectorAll("[tabindex]")]
        .filter((element) => element.tabIndex > 0)
        .map(describe),
      duplicates: [...document.querySelectorAll("[id]")]
        .map((element) => element.id)
        .filter((id, index, all) => id && all.indexOf(id) !== index),
      stuck: stuckWidgets().length,
      dead: deadControls(),
    };
  }

  // Places of widgets that nothing has been drawn into.
  function stuckWidgets() {
    return [...document.querySelectorAll('script[type$="widget-view+json"]')]
      .filter((script) => !script.parentElement.querySelector(".jupyter-widgets"));
  }

  async function widgetsDrawn(limit) {
    const end = performance.now() + limit;
    while (stuckWidgets().length && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  // Widgets whose control drives nothing on a page without a kernel: no link mentions them.
  function deadControls() {
    const script = document.querySelector('script[type$="widget-state+json"]');
    if (!script) return [];
    const state = JSON.parse(script.textContent).state;
    const shown = new Set();
    const show = (id) => {
      if (shown.has(id) || !state[id]) return;
      shown.add(id);
      JSON.stringify(state[id].state).match(/IPY_MODEL_[\w-]+/g)
        ?.forEach((reference) => show(reference.slice("IPY_MODEL_".length)));
    };
    document.querySelectorAll('script[type$="widget-view+json"]')
      .forEach((view) => show(JSON.parse(view.textContent).model_id));
    const models = Object.entries(state);
    const links = models.filter(([, model]) => model.model_name.includes("Link"));
    const linked = JSON.stringify(links.map(([, model]) => model.state));
    const control = /Slider|Dropdown|Checkbox|ToggleButton|RadioButtons|Select|Text$|Button|Play/;
    return models
      .filter(([id]) => shown.has(id))
      .filter(([, model]) => control.test(model.model_name.replace(/Model$/, "")))
      .filter(([, model]) => !/Style/.test(model.model_name))
      .filter(([id]) => !linked.includes(id))
      .map(([, model]) => model.model_name);
  }

  // Any CSS colour, as [red, green, blue, alpha], through a canvas.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parsed = new Map();
  function colour(css) {
    if (!parsed.has(css)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      parsed.set(css, [r, g, b, a / 255]);
    }
    return parsed.get(css);
  }
  const over = ([r, g, b, a], under) =>
    [r, g, b].map((channel, i) => a * channel + (1 - a) * under[i]);
  function background(element) {
    const layers = [];
    for (let node = element; node; node = node.parentElement) {
      layers.push(colour(getComputedStyle(node).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  }
  function luminance(rgb) {
    const [r, g, b] = rgb
      .map((channel) => channel / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  // Texts with less contrast than WCAG 2.1 AA asks for: 4.5, or 3 for large type.
  function contrast() {
    const low = new Map();
    const walker = document.createTreeWalker(main(), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !visible(element)) continue;
      if (element.closest("script, style, mjx-container, svg, .jupyter-widgets")) continue;
      const style = getComputedStyle(element);
      const under = background(element);
      const ink = colour(style.color);
      const [a, b] = [luminance(over(ink, under)), luminance(under)].sort((p, q) => q - p);
      const ratio = (a + 0.05) / (b + 0.05);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      if (ratio < (large ? 3 : 4.5)) low.set(describe(element), ratio.toFixed(2));
    }
    return [...low].map(([element, ratio]) => `${ratio} ${element}`);
  }

  // Elements that stick out of the window to the right, outside of any box that scrolls or clips.
  function overflow() {
    const clipped = (element) => {
      for (let node = element; node && node !== document.body; node = node.parentElement) {
        const style = getComputedStyle(node);
        if (style.overflowX !== "visible" || style.position === "fixed") return true;
      }
      return false;
    };
    const out = [...main().querySelectorAll("*")]
      .filter((e) => visible(e) && e.getBoundingClientRect().right > window.innerWidth + 1)
      .filter((element) => !clipped(element))
      .map(describe);
    return { page: document.documentElement.scrollWidth - window.innerWidth, out };
  }

  // Where the keyboard's focus is: null once it has left the page.
  let places;
  function startFocus() {
    document.activeElement.blur();
    places = new Map([...document.querySelectorAll("*")].map((element, index) => [element, index]));
  }
  function focus() {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const style = getComputedStyle(element);
    return {
      index: places.get(element) ?? -1,
      text: element.textContent.trim().slice(0, 40),
      shown: style.outlineStyle !== "none" || style.boxShadow !== "none",
    };
  }

  window.measure = { structure, startFocus, focus, contrast, overflow, widgetsDrawn };
})();
