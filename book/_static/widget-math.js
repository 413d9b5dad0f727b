// Jupyter widgets typeset with the MathJax 2 call MathJax.Hub.Queue(["Typeset", Hub, element]); these
// pages carry MathJax 3. This script, run after MathJax's settings and before MathJax itself, answers
// that call, and keeps what is asked before MathJax is ready.
(() => {
  const settings = window.MathJax;
  if (!settings) return; // a page without formulas
  const waiting = [];
  let ready = false;
  const typeset = (element) => {
    if (ready) window.MathJax.typesetPromise([element]);
    else waiting.push(element);
  };
  const Hub = {
    Queue(...commands) {
      for (const [, , element] of commands) typeset(element);
    },
  };
  settings.Hub = Hub;
  settings.startup = {
    ...settings.startup,
    ready() {
      window.MathJax.startup.defaultReady();
      window.MathJax.Hub = Hub;
      window.MathJax.startup.promise.then(() => {
        ready = true;
        waiting.splice(0).forEach(typeset);
      });
    },
  };
})();
