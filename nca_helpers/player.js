"use strict";

// The browser's half of nca_helpers/player.py: one step of a neural cellular automaton in plain
// JavaScript, and the page's controls. The page carries its models as JSON in #player-data.
//
// For tests and the curious, window.player offers
//   step(count = 1, {fireAll: false})   advance, with the page's fire rate or with every cell firing
//   state(), setState(values)           a Float32Array of (size, size, channels), copied
//   reset(), play(), pause()            as the buttons do
//   stats()                             {steps, living, playing, model, channels, size}

(() => {
  const ALPHA = 3;

  function decodeFloats(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  }

  /** Unpacks a model's weights, in the order in which player.py packs them. */
  function decodeModel(model) {
    const { channels, hidden } = model;
    // The state is float32; its weights are widened once, so that the inner loop converts nothing.
    const weights = Float64Array.from(decodeFloats(model.weights));
    let start = 0;
    const take = (length) => weights.subarray(start, (start += length));
    return {
      ...model,
      aliveThreshold: Math.fround(model.aliveThreshold),
      hiddenKernel: take(hidden * 3 * channels), // one hidden unit's inputs lie side by side
      hiddenBias: take(hidden),
      updateKernel: take(hidden * channels),
      updateBias: take(channels),
    };
  }

  /** A square grid of cells, with a border of zeros around it that spares the bounds checks. */
  class Automaton {
    constructor(size, model) {
      this.size = size;
      this.stride = size + 2;
      this.area = this.stride * this.stride;
      this.grid = Int32Array.from({ length: size * size }, (_, index) =>
        this.cellAt(Math.floor(index / size), index % size),
      );
      this.alive = new Uint8Array(this.area);
      this.before = new Uint8Array(this.area);
      this.near = new Uint8Array(this.area);
      this.cells = new Int32Array(size * size);
      this.fireRate = model.fireRate;
      this.angle = 0; // radians
      this.allocate(model);
      this.reset();
    }

    allocate(model) {
      this.model = model;
      this.state = new Float32Array(this.area * model.channels);
      this.next = new Float32Array(this.area * model.channels);
      this.perception = new Float32Array(3 * model.channels);
      this.delta = new Float64Array(model.channels);
    }

    /** Lets another model live in this body; channels that it does not have are lost. */
    use(model) {
      const { state, model: { channels } } = this;
      const shared = Math.min(channels, model.channels);
      this.allocate(model);
      for (const cell of this.grid) {
        const start = cell * channels;
        this.state.set(state.subarray(start, start + shared), cell * model.channels);
      }
    }

    reset() {
      this.state.fill(0);
      this.steps = 0;
      this.plant(this.size >> 1, this.size >> 1);
    }

    cellAt(row, column) {
      return (row + 1) * this.stride + column + 1;
    }

    /** Calls visit(cell) for every cell whose centre lies in the disc and in the grid. */
    disc(row, column, diameter, visit) {
      const radius = Math.max(diameter, Math.SQRT2) / 2; // from anywhere, this reaches a cell
      for (let y = Math.ceil(row - radius); y <= row + radius; y++) {
        for (let x = Math.ceil(column - radius); x <= column + radius; x++) {
          const inside = Math.min(x, y) >= 0 && Math.max(x, y) < this.size;
          if (inside && Math.hypot(x - column, y - row) <= radius) visit(this.cellAt(y, x));
        }
      }
    }

    erase(row, column, diameter) {
      const { channels } = this.model;
      this.disc(row, column, diameter, (cell) =>
        this.state.fill(0, cell * channels, (cell + 1) * channels),
      );
    }

    plant(row, column) {
      const { channels } = this.model;
      this.disc(row, column, 1, (cell) => {
        this.state.fill(0, cell * channels, cell * channels + ALPHA);
        this.state.fill(1, cell * channels + ALPHA, (cell + 1) * channels);
      });
    }

    /** Marks the cells whose own alpha is above the threshold, or NaN, and counts them. */
    markAlive(state) {
      const { grid, alive } = this;
      const { channels, aliveThreshold } = this.model;
      let count = 0;
      for (const cell of grid) {
        alive[cell] = state[cell * channels + ALPHA] <= aliveThreshold ? 0 : 1;
        count += alive[cell];
      }
      return count;
    }

    /** Marks every cell whose 3×3 neighbourhood holds a marked cell of the grid. */
    dilate(from, to) {
      const { grid, stride } = this;
      to.fill(0);
      for (const cell of grid) {
        if (!from[cell]) continue;
        for (let center = cell - stride; center <= cell + stride; center += stride) {
          to[center - 1] = to[center] = to[center + 1] = 1;
        }
      }
    }

    /** Lists the cells that can matter: those in the living mask, and those that touch it, whose
     * new alpha may yet keep a neighbour in the mask. All others are dead and stay zero. */
    listCells() {
      const { grid, cells, near } = this;
      this.markAlive(this.state);
      this.dilate(this.alive, this.before);
      this.dilate(this.before, near);
      let count = 0;
      for (const cell of grid) if (near[cell]) cells[count++] = cell;
      return count;
    }

    /** One step of the automaton, as NCA.__call__ in model.py takes it. */
    step({ fireAll = false } = {}) {
      const { state, next, cells, before, near, delta, fireRate } = this;
      const { channels } = this.model;
      const count = this.listCells();

      next.fill(0);
      for (let index = 0; index < count; index++) {
        const start = cells[index] * channels;
        for (let k = 0; k < channels; k++) next[start + k] = state[start + k];
        if (!fireAll && Math.random() >= fireRate) continue;
        this.perceive(start);
        this.respond();
        for (let k = 0; k < channels; k++) next[start + k] += delta[k];
      }

      this.markAlive(next);
      this.dilate(this.alive, near);
      for (let index = 0; index < count; index++) {
        const cell = cells[index];
        if (before[cell] && near[cell]) continue;
        for (let k = 0; k < channels; k++) next[cell * channels + k] = 0;
      }
      this.state = next;
      this.next = state;
      this.steps++;
    }

    /** Fills this.perception: the cell's state and its Sobel gradients in the turned frame. */
    perceive(start) {
      const { state, perception } = this;
      const { channels } = this.model;
      const row = this.stride * channels;
      const cosine = Math.cos(this.angle);
      const sine = Math.sin(this.angle);
      for (let k = 0, here = start; k < channels; k++, here++) {
        const up = here - row;
        const down = here + row;
        const falling = state[down + channels] - state[up - channels]; // one diagonal
        const rising = state[up + channels] - state[down - channels]; // the other
        const x = (falling + rising + 2 * (state[here + channels] - state[here - channels])) / 8;
        const y = (falling - rising + 2 * (state[down] - state[up])) / 8;
        perception[k] = state[here];
        perception[channels + k] = cosine * x - sine * y;
        perception[2 * channels + k] = sine * x + cosine * y;
      }
    }

    /** Fills this.delta: the network's answer to this.perception. */
    respond() {
      const { perception, delta } = this;
      const { channels, hidden, hiddenKernel, hiddenBias, updateKernel, updateBias } = this.model;
      for (let k = 0; k < channels; k++) delta[k] = updateBias[k];
      for (let unit = 0; unit < hidden; unit++) {
        const first = unit * 3 * channels;
        const second = first + channels;
        const third = second + channels;
        // Three sums instead of one: the processor need not wait for each addition.
        let own = hiddenBias[unit];
        let x = 0;
        let y = 0;
        for (let k = 0; k < channels; k++) {
          own += hiddenKernel[first + k] * perception[k];
          x += hiddenKernel[second + k] * perception[channels + k];
          y += hiddenKernel[third + k] * perception[2 * channels + k];
        }
        const activation = own + x + y;
        if (activation <= 0) continue; // relu; a NaN goes on, as it does in JAX
        const output = unit * channels;
        for (let k = 0; k < channels; k++) delta[k] += activation * updateKernel[output + k];
      }
    }

    /** The grid without its border, as one array of (size, size, channels). */
    read() {
      const { channels } = this.model;
      const values = new Float32Array(this.grid.length * channels);
      this.grid.forEach((cell, index) => {
        values.set(this.state.subarray(cell * channels, (cell + 1) * channels), index * channels);
      });
      return values;
    }

    write(values) {
      const { channels } = this.model;
      const length = this.grid.length * channels;
      if (values.length !== length) {
        throw new RangeError(`a state has ${length} values, not ${values.length}`);
      }
      this.grid.forEach((cell, index) => {
        this.state.set(values.slice(index * channels, (index + 1) * channels), cell * channels);
      });
    }

    /** Whether all values are finite: one that is not makes their sum so. */
    isFinite() {
      let sum = 0;
      for (const value of this.state) sum += value;
      return Number.isFinite(sum);
    }
  }

  // ------------------------------------------------------------------------------------ the page

  const SPEEDS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16];
  const FRAME_BUDGET = 40; // milliseconds of stepping, after which a frame is shown whatever is due
  const POSITIVE = [217, 95, 2];
  const NEGATIVE = [43, 108, 176];

  const byId = (id) => document.getElementById(id);
  const page = JSON.parse(byId("player-data").textContent);
  const models = page.models.map(decodeModel);
  const automaton = new Automaton(page.size, models[0]);
  const canvas = byId("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true }); // as it is written
  const picture = new ImageData(page.size, page.size);
  const cursor = { row: page.size >> 1, column: page.size >> 1 }; // the middle of the brush
  const rate = { value: 0, steps: 0, since: performance.now() };
  let playing = true;
  let due = 0; // steps owed to the clock: a frame may be worth less than one
  let changed = true;
  let stroke = null; // where the pointer was, while it is down
  let stage; // the canvas's own colour, behind all that is transparent
  let ink;

  // --- drawing

  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) =>
      [1, 3, 5].map((at) => parseInt(style.getPropertyValue(name).trim().slice(at, at + 2), 16));
    stage = color("--stage");
    ink = color("--ink");
    changed = true;
  }

  function paintColor(pixels, at, start) {
    const alpha = Math.min(1, Math.max(0, automaton.state[start + ALPHA]));
    for (let k = 0; k < 3; k++) {
      pixels[at + k] = 255 * automaton.state[start + k] + (1 - alpha) * stage[k];
    }
  }

  function paintValue(pixels, at, value, positive, negative) {
    const strength = Math.min(1, Math.abs(value));
    const color = value < 0 ? negative : positive;
    for (let k = 0; k < 3; k++) pixels[at + k] = stage[k] + strength * (color[k] - stage[k]);
  }

  function draw() {
    const { grid, state, model } = automaton;
    const view = byId("view").value;
    const channel = Number(view);
    for (let index = 0, at = 0; index < grid.length; index++, at += 4) {
      const start = grid[index] * model.channels;
      if (view === "color") paintColor(picture.data, at, start);
      else if (channel === ALPHA) paintValue(picture.data, at, state[start + ALPHA], ink, stage);
      else paintValue(picture.data, at, state[start + channel], POSITIVE, NEGATIVE);
      picture.data[at + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }

  function report() {
    const living = automaton.markAlive(automaton.state);
    byId("steps").textContent = automaton.steps;
    byId("living").textContent = living;
    byId("rate").textContent = playing ? Math.round(rate.value) : 0;
    const dead = living === 0 ? "Nothing is alive: reset, or plant a seed." : "";
    const overflow = "The numbers have overflowed to NaN or infinity: reset.";
    const notice = automaton.isFinite() ? dead : overflow;
    if (byId("notice").textContent !== notice) byId("notice").textContent = notice;
  }

  // --- time

  function advance(count = 1, options = {}) {
    for (let index = 0; index < count; index++) automaton.step(options);
    changed = true;
  }

  function measureRate() {
    const now = performance.now();
    if (now - rate.since < 500) return;
    rate.value = (1000 * (automaton.steps - rate.steps)) / (now - rate.since);
    rate.steps = automaton.steps;
    rate.since = now;
  }

  function frame() {
    if (playing) {
      const deadline = performance.now() + FRAME_BUDGET;
      due += SPEEDS[byId("speed").value];
      for (; due >= 1 && performance.now() < deadline; due--) advance();
      due %= 1; // a machine too slow for this speed does not fall ever further behind
    }
    measureRate();
    if (changed) {
      changed = false;
      draw();
      report();
    }
    requestAnimationFrame(frame);
  }

  function setPlaying(value) {
    playing = value;
    due = 0;
    changed = true;
    byId("play").dataset.playing = playing;
    byId("play-text").textContent = playing ? "Pause" : "Play";
  }

  function stepOnce() {
    setPlaying(false);
    advance();
  }

  function reset() {
    automaton.reset();
    rate.steps = 0;
    changed = true;
  }

  // --- the brush

  const brush = () => document.querySelector("input[name=brush]:checked").value;
  const brushSize = () => Number(byId("brush-size").value);

  function touchCell(row, column) {
    if (brush() === "erase") automaton.erase(row, column, brushSize());
    else automaton.plant(Math.round(row), Math.round(column));
    changed = true;
  }

  /** Uses the brush all along a line; seeds stand a brush's width apart. */
  function drag(to) {
    const distance = Math.hypot(to.row - stroke.row, to.column - stroke.column);
    const planting = brush() === "plant";
    if (planting && distance < brushSize()) return;
    const count = planting ? 1 : Math.ceil(distance);
    for (let index = 1; index <= count; index++) {
      const along = (from, until) => from + (index / count) * (until - from);
      touchCell(along(stroke.row, to.row), along(stroke.column, to.column));
    }
    stroke = to;
  }

  function position(event) {
    const box = canvas.getBoundingClientRect();
    return {
      row: ((event.clientY - box.top) / box.height) * page.size - 0.5,
      column: ((event.clientX - box.left) / box.width) * page.size - 0.5,
    };
  }

  function moveCursor({ row, column }) {
    Object.assign(cursor, { row, column });
    const percent = (cells) => `${(100 * cells) / page.size}%`;
    const width = percent(brush() === "erase" ? brushSize() : 1);
    const [left, top] = [percent(column + 0.5), percent(row + 0.5)];
    Object.assign(byId("cursor").style, { left, top, width });
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    stroke = position(event);
    moveCursor(stroke);
    touchCell(stroke.row, stroke.column);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.isPrimary) return;
    moveCursor(position(event));
    if (stroke) drag(position(event));
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, (event) => event.isPrimary && (stroke = null));
  }

  // --- controls

  function fillViews(channels) {
    const chosen = byId("view").value || "color";
    const views = [new Option("Colour", "color"), new Option("Alpha", ALPHA)];
    for (let channel = ALPHA + 1; channel < channels; channel++) {
      views.push(new Option(`Hidden channel ${channel}`, channel));
    }
    byId("view").replaceChildren(...views);
    byId("view").value = chosen;
    if (byId("view").selectedIndex < 0) byId("view").value = "color";
  }

  function chooseModel() {
    automaton.use(models[byId("model").value]);
    fillViews(automaton.model.channels);
    byId("fire-rate").value = automaton.model.fireRate;
    obeyControls();
  }

  /** Obeys the controls, and writes each slider's value beside it. */
  function obeyControls() {
    automaton.fireRate = Number(byId("fire-rate").value);
    automaton.angle = (Number(byId("angle").value) * Math.PI) / 180;
    const speed = SPEEDS[byId("speed").value];
    const texts = {
      speed: `${speed < 1 ? `1/${1 / speed}` : speed} a frame`,
      "fire-rate": `${Math.round(100 * automaton.fireRate)} %`,
      angle: `${byId("angle").value}°`,
      "brush-size": `${brushSize()}`,
    };
    for (const [id, text] of Object.entries(texts)) {
      byId(`${id}-text`).textContent = text;
      byId(id).setAttribute("aria-valuetext", text);
    }
    byId("scale").hidden = !(Number(byId("view").value) > ALPHA);
    moveCursor(cursor);
    changed = true;
  }

  function cycle(select) {
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }

  function slide(id, steps) {
    byId(id)[steps < 0 ? "stepDown" : "stepUp"]();
    byId(id).dispatchEvent(new Event("input", { bubbles: true }));
  }

  const togglePlaying = () => setPlaying(!playing);
  byId("play").addEventListener("click", togglePlaying);
  byId("step").addEventListener("click", stepOnce);
  byId("reset").addEventListener("click", reset);
  byId("model").addEventListener("change", chooseModel);
  for (const kind of ["input", "change"]) byId("controls").addEventListener(kind, obeyControls);

  // --- the keyboard

  const SHORTCUTS = {
    " ": togglePlaying,
    s: stepOnce,
    r: reset,
    m: () => cycle(byId("model")),
    v: () => cycle(byId("view")),
    e: () => byId("erase").click(),
    p: () => byId("plant").click(),
    "[": () => slide("brush-size", -1),
    "]": () => slide("brush-size", 1),
    "-": () => slide("speed", -1),
    "+": () => slide("speed", 1),
    "=": () => slide("speed", 1),
  };
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  document.addEventListener("keydown", (event) => {
    const action = SHORTCUTS[event.key.toLowerCase()];
    const { localName } = event.target;
    const pressable = localName === "button" || localName === "summary";
    const ownKey = localName === "select" || (event.key === " " && pressable);
    if (!action || ownKey || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow && event.key !== "Enter") return;
    event.preventDefault();
    if (!arrow) return touchCell(cursor.row, cursor.column);
    const clamp = (value) => Math.min(page.size - 1, Math.max(0, Math.round(value)));
    moveCursor({ row: clamp(cursor.row + arrow[0]), column: clamp(cursor.column + arrow[1]) });
  });

  // --- start

  canvas.width = canvas.height = page.size;
  byId("model").replaceChildren(...models.map(({ name }, index) => new Option(name, index)));
  byId("model-row").hidden = models.length < 2;
  if (models.length === 1 && models[0].name) document.title = models[0].name;
  chooseModel();
  readTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readTheme);
  setPlaying(true);

  window.player = Object.freeze({
    step: advance,
    reset,
    play: () => setPlaying(true),
    pause: () => setPlaying(false),
    state: () => automaton.read(),
    setState: (values) => {
      automaton.write(values);
      changed = true;
    },
    stats: () => ({
      steps: automaton.steps,
      living: automaton.markAlive(automaton.state),
      playing,
      model: automaton.model.name,
      channels: automaton.model.channels,
      size: page.size,
    }),
  });
  requestAnimationFrame(frame);
})();
