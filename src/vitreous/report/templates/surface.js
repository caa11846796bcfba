// Viewer of surfaces: surface nets of 8-bit maps, drawn with WebGL 2.
// Source: Gibson, MERL TR99-24 (1999): a vertex in every cell that the surface crosses, at the mean
// of the crossings of its edges; a quadrilateral around every edge that it crosses.
(async () => {
  "use strict";
  const stage = document.getElementById("stage");
  const part = (name) => stage.parentElement.querySelector("." + name);
  const canvas = stage.querySelector("canvas");
  const gl = window.DecompressionStream && canvas.getContext("webgl2", { antialias: true });
  if (!gl) return;
  const PALETTE = [[58, 110, 196], [84, 178, 210], [150, 208, 150], [244, 204, 96], [214, 84, 64]];
  const GREY = [176, 190, 204];
  const SHADES = Array.from({ length: 256 }, (_, shade) => {
    const at = Math.max(0, shade - 1) / 254 * 3.999, i = Math.floor(at);
    return PALETTE[i].map((v, k) => v + (at - i) * (PALETTE[i + 1][k] - v));
  });
  const layers = JSON.parse(document.getElementById("surfaces").textContent);
  const load = async (layer) => {
    if (layer.colours) layer.shades = await unpack(layer.colours.values);
    const values = await unpack(layer.values), size = values.length / layer.frames;
    for (let i = size; i < values.length; i++) values[i] += values[i - size];
    layer.maps = Array.from({ length: layer.frames }, (_, k) => values.subarray(k * size, (k + 1) * size));
    layer.grid = layer.maps[0];
  };
  for (const layer of layers) if (layer.shown) await load(layer);

  // Vertices, colours and triangles of the surface at `level`, 0 to 255.
  function surface(layer, level) {
    const { grid, shades, first, step, shape: [nx, ny, nz] } = layer;
    const strides = [1, nx, nx * ny];
    const corner = Int32Array.from({ length: 8 }, (_, i) =>
      (i & 1) + ((i >> 1) & 1) * nx + ((i >> 2) & 1) * nx * ny);
    const vertex = new Int32Array(grid.length);
    const points = [], rgb = [], triangles = [], q = [0, 0, 0, 0], at = [0, 0, 0];
    for (let z = 0; z < nz - 1; z++) for (let y = 0; y < ny - 1; y++) {
      let cell = (z * ny + y) * nx, column = 0;
      for (let i = 0; i < 8; i += 2) if (grid[cell + corner[i]] > level) column |= 1 << i;
      for (let x = 0; x < nx - 1; x++, cell++) {
        let signs = column;
        column = 0;
        for (let i = 0; i < 8; i += 2) if (grid[cell + 1 + corner[i]] > level) column |= 1 << i;
        signs |= column << 1;
        if (signs === 0 || signs === 255) continue;
        let mx = 0, my = 0, mz = 0, crossed = 0, shade = 0;
        for (let a = 0; a < 8; a++) {
          const low = grid[cell + corner[a]];
          if (shades) shade = Math.max(shade, shades[cell + corner[a]]);
          for (let bit = 1; bit < 8; bit <<= 1) {
            const b = a | bit;
            if (b === a || ((signs >> a) & 1) === ((signs >> b) & 1)) continue;
            const t = (level - low) / (grid[cell + corner[b]] - low);
            mx += bit === 1 ? t : a & 1;
            my += bit === 2 ? t : (a >> 1) & 1;
            mz += bit === 4 ? t : a >> 2;
            crossed++;
          }
        }
        vertex[cell] = points.length / 3;
        points.push(first[0] + (x + mx / crossed) * step[0], first[1] + (y + my / crossed) * step[1],
          first[2] + (z + mz / crossed) * step[2]);
        const c = shade ? SHADES[shade] : GREY;
        rgb.push(c[0], c[1], c[2]);
        at[0] = x; at[1] = y; at[2] = z;
        for (let d = 0; d < 3; d++) {
          if ((signs & 1) === ((signs >> (1 << d)) & 1)) continue;
          const u = (d + 1) % 3, v = (d + 2) % 3;
          if (!at[u] || !at[v]) continue;
          const side = signs & 1;
          q[0] = vertex[cell];
          q[2] = vertex[cell - strides[u] - strides[v]];
          q[side ? 1 : 3] = vertex[cell - strides[u]];
          q[side ? 3 : 1] = vertex[cell - strides[v]];
          triangles.push(q[0], q[1], q[2], q[0], q[2], q[3]);
        }
      }
    }
    return { points: new Float32Array(points), rgb: new Uint8Array(rgb),
      triangles: new Uint32Array(triangles) };
  }

  // Mean of the normals of the triangles at each vertex, weighted by area.
  function normals({ points: p, triangles: t }) {
    const normal = new Float32Array(p.length);
    for (let i = 0; i < t.length; i += 3) {
      const a = 3 * t[i], b = 3 * t[i + 1], c = 3 * t[i + 2];
      const ux = p[b] - p[a], uy = p[b + 1] - p[a + 1], uz = p[b + 2] - p[a + 2];
      const vx = p[c] - p[a], vy = p[c + 1] - p[a + 1], vz = p[c + 2] - p[a + 2];
      const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
      normal[a] += x; normal[a + 1] += y; normal[a + 2] += z;
      normal[b] += x; normal[b + 1] += y; normal[b + 2] += z;
      normal[c] += x; normal[c + 1] += y; normal[c + 2] += z;
    }
    return normal;
  }

  const program = gl.createProgram();
  for (const [kind, code] of [[gl.VERTEX_SHADER, `#version 300 es
    in vec3 point, normal, rgb;
    uniform mat3 turn;
    uniform vec3 scale;
    out vec3 facing, tint;
    out float depth;
    void main() {
      vec3 p = turn * point * scale;
      gl_Position = vec4(p.xy, -p.z, 1.0);
      facing = turn * normal; tint = rgb; depth = p.z;
    }`], [gl.FRAGMENT_SHADER, `#version 300 es
    precision mediump float;
    in vec3 facing, tint;
    in float depth;
    out vec4 shown;
    void main() {
      vec3 n = normalize(facing);
      if (n.z < 0.0) n = -n;
      float light = 0.3 + 0.7 * max(dot(n, normalize(vec3(-0.3, 0.4, 0.85))), 0.0);
      float shine = 0.2 * pow(max(dot(n, normalize(vec3(-0.15, 0.2, 0.95))), 0.0), 24.0);
      shown = vec4((tint * light + shine) * (0.8 + 0.35 * clamp(depth, -1.0, 0.6)), 1.0);
    }`]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, code);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  gl.enable(gl.SCISSOR_TEST);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [turnAt, scaleAt] = [uniform("turn"), uniform("scale")];

  const along = part("along"), play = part("play"); // absent where no map moves
  const slider = part("level"), output = part("value"), labels = part("labels");
  const boxes = [...stage.parentElement.querySelectorAll(".layer")];
  const seen = () => layers.filter((_, i) => boxes[i].checked);
  let radius = 1, fitted = false; // radius of what is shown at first, Å
  let turn, zoom, pending = false;

  // The map at the slider's place on a path, between two of its maps.
  function place(layer) {
    const at = along.value * (layer.frames - 1), k = Math.min(Math.floor(at), layer.frames - 2);
    const [from, to] = [layer.maps[k], layer.maps[k + 1]];
    layer.grid = Float32Array.from(from, (v, i) => v + (at - k) * (to[i] - v));
  }
  const state = (layer) => layer.frames > 1 ? `${slider.value} ${along.value}` : slider.value;

  function rebuild(layer) {
    if (layer.frames > 1) place(layer);
    const level = 255 * Math.min(slider.value / layer.top, 0.999);
    const mesh = surface(layer, level), p = mesh.points;
    if (!fitted) for (let i = 0; i < p.length; i += 3)
      radius = Math.max(radius, Math.hypot(p[i], p[i + 1], p[i + 2]));
    layer.array ??= gl.createVertexArray();
    layer.buffers ??= Array.from({ length: 4 }, () => gl.createBuffer());
    gl.bindVertexArray(layer.array);
    const fields = [["point", mesh.points, gl.FLOAT], ["normal", normals(mesh), gl.FLOAT],
      ["rgb", mesh.rgb, gl.UNSIGNED_BYTE]];
    fields.forEach(([name, data, type], i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, layer.buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
      const at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, 3, type, type === gl.UNSIGNED_BYTE, 0, 0);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, layer.buffers[3]);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.DYNAMIC_DRAW);
    Object.assign(layer, { count: mesh.triangles.length, built: state(layer) });
  }

  function draw() {
    pending = false;
    const shown = seen();
    for (const layer of shown) if (layer.grid && layer.built !== state(layer)) rebuild(layer);
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const wide = canvas.width / canvas.height;
    const columns = Math.max(1, Math.min(shown.length, Math.round(Math.sqrt(shown.length * wide))));
    const rows = Math.max(1, Math.ceil(shown.length / columns));
    const [w, h] = [canvas.width / columns, canvas.height / rows];
    labels.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    labels.replaceChildren(...shown.map(({ name }) =>
      Object.assign(document.createElement("span"), { textContent: name })));
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.scissor(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    fitted = true;
    const fit = 0.95 * zoom / radius, least = Math.min(w, h);
    shown.forEach((layer, i) => {
      const area = [(i % columns) * w, canvas.height - (Math.floor(i / columns) + 1) * h, w, h];
      gl.viewport(...area);
      gl.scissor(...area);
      gl.uniformMatrix3fv(turnAt, true, turn.flat());
      gl.uniform3f(scaleAt, fit * least / w, fit * least / h, 0.9 / radius);
      gl.bindVertexArray(layer.array);
      gl.drawElements(gl.TRIANGLES, layer.count ?? 0, gl.UNSIGNED_INT, 0);
    });
    const { mean, sigma } = shown[0] ?? layers[0], sigmas = Number(slider.value);
    output.textContent = `${sigmas.toFixed(2)} σ above the mean: ${(mean + sigmas * sigma).toPrecision(3)}`;
    if (along) {
      const { frames } = layers.find((layer) => layer.frames > 1);
      part("place").textContent = `map ${(1 + along.value * (frames - 1)).toFixed(1)} of ${frames}`;
    }
    const colours = shown.find((layer) => layer.colours)?.colours;
    part("bar").hidden = !colours;
    if (colours) {
      part("ramp").style.background =
        `linear-gradient(to right, ${PALETTE.map((c) => `rgb(${c})`).join(", ")})`;
      part("ticks").replaceChildren(...[0, 0.5, 1].map((share) =>
        Object.assign(document.createElement("span"), { textContent:
          `${(colours.low + share * (colours.high - colours.low)).toFixed(1)} Å` })));
    }
    stage.dataset.triangles = shown.reduce((sum, layer) => sum + (layer.count ?? 0) / 3, 0);
  }
  const ask = () => { if (!pending) { pending = true; requestAnimationFrame(draw); } };

  function rotate(dx, dy) {
    const angle = Math.hypot(dx, dy);
    if (!angle) return;
    const [x, y] = [dy / angle, dx / angle], c = Math.cos(angle), s = Math.sin(angle), k = 1 - c;
    const by = [[c + x * x * k, x * y * k, y * s], [x * y * k, c + y * y * k, -x * s],
      [-y * s, x * s, c]];
    turn = by.map((row) => [0, 1, 2].map((j) => row.reduce((sum, v, i) => sum + v * turn[i][j], 0)));
    ask();
  }
  const magnify = (by) => { zoom = Math.min(20, Math.max(0.2, zoom * by)); ask(); };
  const reset = () => {
    [turn, zoom] = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1];
    slider.value = slider.defaultValue;
    ask();
  };

  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (before) magnify(spread() / before);
    else rotate((event.clientX - last[0]) * 0.01, (event.clientY - last[1]) * 0.01);
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    magnify(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.0015));
  }, { passive: false });
  const KEYS = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
  canvas.addEventListener("keydown", (event) => {
    if (KEYS[event.key]) rotate(...KEYS[event.key]);
    else if (event.key === "+" || event.key === "-") magnify(event.key === "+" ? 1.15 : 1 / 1.15);
    else return;
    event.preventDefault();
  });
  slider.addEventListener("input", ask);
  const move = () => {
    const first = layers.findIndex((layer) => layer.frames > 1);
    if (!seen().some((layer) => layer.frames > 1)) boxes[first].checked = true;
    ask();
  };
  along?.addEventListener("input", move);
  play?.addEventListener("click", () => {
    const playing = play.getAttribute("aria-pressed") !== "true", start = performance.now();
    const phase = Math.acos(1 - 2 * along.value);
    play.setAttribute("aria-pressed", playing);
    const step = (now) => {
      if (play.getAttribute("aria-pressed") !== "true") return;
      along.value = 0.5 - 0.5 * Math.cos(phase + (now - start) / 700);
      move();
      requestAnimationFrame(step);
    };
    if (playing) requestAnimationFrame(step);
  });
  boxes.forEach((box) => box.addEventListener("change", ask));
  part("reset").addEventListener("click", reset);
  new ResizeObserver(ask).observe(canvas);
  canvas.addEventListener("webglcontextlost", () => stage.parentElement.classList.remove("live"));

  stage.parentElement.classList.add("live");
  reset();
  draw();
  gl.finish();
  stage.dataset.milliseconds = Math.round(performance.now());
  for (const layer of layers) if (!layer.shown) await load(layer);
  ask();
})();
