// Selection of particles by lasso, box or class, counted at once, and its rows as a STAR file.
(async () => {
  "use strict";
  const panel = document.getElementById("selection");
  if (!window.DecompressionStream) { panel.hidden = true; return; }
  const data = JSON.parse(document.getElementById("particles").textContent);
  const numbers = async (text) => {
    const bytes = await unpack(text), count = bytes.length / 2;
    return Uint16Array.from({ length: count }, (_, i) => 256 * bytes[i] + bytes[count + i]);
  };
  const label = await numbers(data.label), count = label.length;
  const plane = data.plane && await Promise.all(data.plane.map(async ({ low, step, values }) =>
    Float64Array.from(await numbers(values), (value) => low + step * value)));
  const plot = plane && document.getElementById("plot-embedding");
  const part = (name) => panel.querySelector("." + name);
  const classes = [...document.querySelectorAll("[data-class]")];
  const drags = [...panel.querySelectorAll("[data-drag]")];
  const picked = new Set();
  let chosen = new Uint8Array(count), size = 0, drag = "lasso", joins = 0;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  function show() {
    const sizes = new Uint32Array(65536);
    for (let i = 0; i < count; i++) sizes[label[i]] += chosen[i];
    size = sizes.reduce((sum, value) => sum + value, 0);
    part("chosen").textContent = !size ? "No particle is selected."
      : `${size.toLocaleString("en")} of ${count.toLocaleString("en")} particles are selected (${percent(size / count)}).`;
    for (const name of ["save", "clear"]) part(name).disabled = !size;
    for (const one of classes) {
      const own = sizes[one.dataset.class];
      one.setAttribute("aria-pressed", picked.has(Number(one.dataset.class)));
      one.classList.toggle("without", size > 0 && !own);
      one.style.order = -own;
      document.getElementById("share-" + one.dataset.class).textContent =
        own ? `${own.toLocaleString("en")} (${percent(own / size)})` : "";
    }
    if (!plot) return;
    const rows = plot.data[0].customdata, points = [];
    rows.forEach((row, i) => { if (chosen[row - 1]) points.push(i); });
    Plotly.update(plot, { selectedpoints: [size ? points : null] }, { selections: [], dragmode: drag });
  }
  function choose(member) {
    chosen = Uint8Array.from(chosen, member);
    show();
  }
  const clear = () => { picked.clear(); choose(() => 0); };

  // Whether a line from the point to the right crosses the outline an odd number of times.
  function within([px, py], x, y) {
    let odd = false;
    for (let i = 0, j = px.length - 1; i < px.length; j = i++)
      if ((py[i] > y) !== (py[j] > y) &&
        x < (px[j] - px[i]) * (y - py[i]) / (py[j] - py[i]) + px[i]) odd = !odd;
    return odd;
  }
  function enclose(outline) {
    const [[left, right], [low, high]] = outline.map((side) =>
      side.reduce(([least, most], v) => [Math.min(least, v), Math.max(most, v)], [Infinity, -Infinity]));
    const [xs, ys] = plane;
    picked.clear();
    choose((before, i) => {
      const x = xs[i], y = ys[i];
      const inside = x >= left && x <= right && y >= low && y <= high && within(outline, x, y);
      return joins > 0 ? before || inside : joins < 0 ? before && !inside : inside;
    });
  }

  async function save() {
    const texts = new TextDecoder();
    const columns = await Promise.all(data.columns.map(async ([packed, after]) =>
      [texts.decode(await unpack(packed)).split("\n"), after]));
    const rows = [data.head];
    for (let i = 0; i < count; i++)
      if (chosen[i]) rows.push(columns.map(([cells, after]) => cells[i] + after).join("") + "\n");
    const href = URL.createObjectURL(new Blob(rows, { type: "application/octet-stream" }));
    Object.assign(document.createElement("a"), { href, download: "selection.star" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  }

  for (const one of classes) one.addEventListener("click", () => {
    const number = Number(one.dataset.class);
    if (!picked.delete(number)) picked.add(number);
    choose((_, i) => picked.has(label[i]));
  });
  part("save").addEventListener("click", save);
  part("clear").addEventListener("click", clear);
  if (plot) {
    await plotted;
    plot.addEventListener("mousedown", (event) => {
      joins = event.shiftKey ? 1 : event.altKey ? -1 : 0;
    }, true);
    plot.on("plotly_selected", (event) => {
      if (event?.lassoPoints) enclose([event.lassoPoints.x, event.lassoPoints.y]);
      else if (event?.range) {
        const [[x0, x1], [y0, y1]] = [event.range.x, event.range.y];
        enclose([[x0, x1, x1, x0], [y0, y0, y1, y1]]);
      }
    });
    plot.on("plotly_doubleclick", () => { if (drag !== "zoom") clear(); });
    for (const one of drags) one.addEventListener("click", () => {
      drag = one.dataset.drag;
      for (const other of drags) other.setAttribute("aria-pressed", other === one);
      show();
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  }
  show();
  panel.dataset.ready = "";
})();
