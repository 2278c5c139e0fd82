// The player: an automaton to watch and to draw on, and the page's controls. The page carries its
// models as JSON in #data.
//
// For tests and the curious, window.player offers
//   step(count = 1, {fireAll: false})   advance, with the page's fire rate or with all firing
//   state(), setState(values)           a Float32Array of (size, size, channels), copied
//   rules(), setRules(values)           which model each cell follows: (size, size), 0 is the first
//   reset(), play(), pause()            as the buttons do
//   stats()                             {steps, living, playing, model, channels, size, compiled}

{
  const SPEEDS = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16];
  const FRAME_BUDGET = 40; // milliseconds of stepping, after which a frame is shown whatever is due
  const LARGEST_ZOOM = 8;
  const LINKED = ["view", "fire-rate", "angle", "speed"]; // beside the model, what a link restores
  const VIDEO_SECONDS = 6;
  const VIDEO_TYPES = ["video/mp4;codecs=avc1.42001f", "video/webm", "video/mp4"];

  const page = JSON.parse(byId("data").textContent);
  const models = page.models.map((model) => makeRule(model, decodeFloats(model.weights)));
  const automaton = new Automaton(page.size, models);
  const canvas = byId("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true }); // as it is written
  let picture = new ImageData(page.size, page.size);
  // While it plays, fewer pixels a cell, so that it stays fluent.
  const [quick, fine] = [4, 8].map((factor) => page.decoder && new Decoder(page.decoder, factor));
  const cursor = { row: page.size >> 1, column: page.size >> 1 }; // the middle of the brush
  const lens = { scale: 1, x: 0.5, y: 0.5 }; // the middle of what is seen, as a share of the grid
  const rate = { value: 0, steps: 0, since: performance.now() };
  const fingers = new Map(); // of those on the canvas, where each one is
  let playing = true;
  let due = 0; // steps owed to the clock: a frame may be worth less than one
  let changed = true;
  let stroke = null; // where the pointer was, while it is down
  let beforeStroke = null; // the state then: the first finger of two was no brush
  let said = "";
  let recording = null;

  // --- drawing

  /** Draws the picture. Screen, file and video all take it from the canvas. */
  function draw() {
    const view = byId("view").value;
    const decoder = view === "sharp" && (playing ? quick : fine);
    const side = page.size * (decoder ? decoder.factor : 1);
    if (canvas.width !== side) {
      canvas.width = canvas.height = side;
      picture = new ImageData(side, side);
    }
    if (decoder) decoder.draw(automaton, picture);
    else paint(automaton, picture, view === "color" && brush() === "graft" ? "rules" : view);
    context.putImageData(picture, 0, 0);
    if (recording) enlarge(canvas, recording.canvas);
  }

  function report() {
    const living = automaton.markAlive(automaton.state);
    byId("steps").textContent = automaton.steps;
    byId("living").textContent = living;
    byId("rate").textContent = playing ? Math.round(rate.value) : 0;
    const dead = living === 0 ? "Nothing is alive: reset, or plant a seed." : "";
    const overflow = "The numbers have overflowed to NaN or infinity: reset.";
    const notice = said || (automaton.isFinite() ? dead : overflow);
    if (byId("notice").textContent !== notice) byId("notice").textContent = notice;
    reportRules();
    reportPicked();
  }

  /** Which rules live on the grid, and in how many cells. */
  function reportRules() {
    const counts = models.map(() => 0);
    if (automaton.isMixed) {
      for (const cell of automaton.grid) counts[automaton.ruleOf[cell]] += automaton.alive[cell];
    }
    const shown = counts.flatMap((count, index) => (count ? [[count, index]] : []));
    byId("legend").replaceChildren(
      ...shown.map(([count, index]) => {
        const line = document.createElement("span");
        const dot = document.createElement("i");
        if (index !== automaton.own) dot.style.background = `rgb(${ruleColor(index)})`;
        line.append(dot, `${models[index].name} ${count}`);
        return line;
      }),
    );
  }

  /** What the cell under the brush holds: its name, and name and value of each channel. */
  function pick() {
    const { row, column } = cursorCell();
    const { state, channels, ruleOf } = automaton;
    const cell = automaton.cellAt(row, column);
    const follows = models.length > 1 ? `, follows ${models[ruleOf[cell]].name}` : "";
    const values = Array.from(state.subarray(cell * channels, (cell + 1) * channels));
    const name = (channel) => ["red", "green", "blue", "alpha"][channel] ?? channel;
    return {
      title: `Row ${row}, column ${column}${follows}`,
      values: values.map((value, channel) => [name(channel), value]),
    };
  }

  const withSign = (value) => value.toFixed(2).replace("-", "−");

  function reportPicked() {
    byId("picked").hidden = brush() !== "pick";
    if (byId("picked").hidden) return;
    const { title, values } = pick();
    const depth = 0.5 + ((cursor.row + 0.5) / page.size - lens.y) * lens.scale;
    byId("picked").classList.toggle("top", depth > 0.6); // not over the cell itself
    byId("picked-title").textContent = title;
    byId("picked-values").replaceChildren(
      ...values.map(([name, value]) => {
        const item = document.createElement("li");
        const label = document.createElement("b");
        label.textContent = name;
        item.append(label, withSign(value));
        const color = `rgb(${value < 0 ? NEGATIVE : POSITIVE})`;
        const share = Math.min(100, Math.round(100 * Math.abs(value)));
        item.style.borderImage = `linear-gradient(90deg, ${color} ${share}%, var(--line) 0) 1`;
        return item;
      }),
    );
  }

  /** For who hears the page. */
  function sayPicked() {
    const { title, values } = pick();
    say(`${title}: ${values.map(([name, value]) => `${name} ${withSign(value)}`).join(", ")}`);
  }

  /** Tells the reader something for a while. */
  function say(text) {
    said = text;
    changed = true;
    setTimeout(() => {
      if (said === text) said = "";
      changed = true;
    }, 6000);
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
  const donor = () => Number(byId("donor").value);
  const clampCell = (value) => Math.min(page.size - 1, Math.max(0, Math.round(value)));
  const cursorCell = () => ({ row: clampCell(cursor.row), column: clampCell(cursor.column) });

  function touchCell(row, column) {
    const kind = brush();
    if (kind === "erase") automaton.erase(row, column, brushSize());
    if (kind === "plant") automaton.plant(Math.round(row), Math.round(column), donor());
    if (kind === "graft") automaton.graft(row, column, brushSize(), donor());
    byId("hint").hidden = true;
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
    const width = percent(["erase", "graft"].includes(brush()) ? brushSize() : 1);
    const [left, top] = [percent(column + 0.5), percent(row + 0.5)];
    Object.assign(byId("cursor").style, { left, top, width });
    byId("cursor").classList.toggle("shown", brush() === "pick");
    if (brush() === "pick") changed = true;
  }

  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, onStage(event));
    canvas.setPointerCapture(event.pointerId);
    if (fingers.size === 2 && stroke && event.pointerType === "touch") {
      automaton.write(beforeStroke);
      stroke = null;
    }
    if (event.button !== 0 || !event.isPrimary) return;
    if (event.pointerType === "touch") beforeStroke = automaton.read();
    stroke = position(event);
    moveCursor(stroke);
    touchCell(stroke.row, stroke.column);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (fingers.size === 2 && fingers.has(event.pointerId)) return pinch(event);
    if (!event.isPrimary) return;
    moveCursor(position(event));
    if (stroke) drag(position(event));
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      if (event.isPrimary) stroke = null;
    });
  }

  // --- zoom

  /** Where an event is on the stage: shares of its width and height. */
  function onStage({ clientX, clientY }) {
    const box = byId("stage").getBoundingClientRect();
    return { x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height };
  }

  /** Zooms by a factor; what was seen at `from` on the stage is seen at `to` afterwards. */
  function zoom(factor, from, to = from) {
    const scale = Math.min(LARGEST_ZOOM, Math.max(1, lens.scale * factor));
    for (const axis of ["x", "y"]) {
      const middle = lens[axis] + (from[axis] - 0.5) / lens.scale - (to[axis] - 0.5) / scale;
      lens[axis] = Math.min(1 - 0.5 / scale, Math.max(0.5 / scale, middle));
    }
    lens.scale = scale;
    const shift = (axis) => `${100 * scale * (0.5 - lens[axis])}%`;
    byId("lens").style.transform = `translate(${shift("x")}, ${shift("y")}) scale(${scale})`;
    byId("lens").style.setProperty("--zoom", scale);
    byId("zoom-out").hidden = scale === 1;
    changed = true;
  }

  function zoomAtCursor(factor) {
    const seen = (axis, cells) => 0.5 + ((cells + 0.5) / page.size - lens[axis]) * lens.scale;
    const [x, y] = [seen("x", cursor.column), seen("y", cursor.row)];
    zoom(factor, Math.max(x, y) > 1 || Math.min(x, y) < 0 ? { x: 0.5, y: 0.5 } : { x, y });
  }

  function pinch(event) {
    const [still] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const [before, after] = [fingers.get(event.pointerId), onStage(event)];
    const apart = (at) => Math.hypot(at.x - still.x, at.y - still.y);
    const between = (at) => ({ x: (at.x + still.x) / 2, y: (at.y + still.y) / 2 });
    zoom(apart(after) / Math.max(apart(before), 0.01), between(before), between(after));
    fingers.set(event.pointerId, after);
  }

  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && lens.scale === 1) return; // the page's own scrolling
      event.preventDefault();
      const at = onStage(event);
      if (event.ctrlKey) return zoom(Math.exp(-event.deltaY / 100), at);
      const { clientX, clientY, deltaX, deltaY } = event;
      zoom(1, onStage({ clientX: clientX + deltaX, clientY: clientY + deltaY }), at);
    },
    { passive: false },
  );

  // --- controls

  function fillViews(channels) {
    const chosen = byId("view").value || "color";
    const views = [new Option("Colour", "color"), new Option("Alpha", ALPHA)];
    for (let channel = ALPHA + 1; channel < channels; channel++) {
      views.push(new Option(`Hidden channel ${channel}`, channel));
    }
    if (models.length > 1) views.push(new Option("Colour, tinted by rule", "rules"));
    if (page.decoder) views.splice(1, 0, new Option("Colour, sharp", "sharp"));
    byId("view").replaceChildren(...views);
    byId("view").value = chosen;
    if (byId("view").selectedIndex < 0) byId("view").value = "color";
  }

  /** Offers the rules that this body can take; those of other channels are named and refused. */
  function fillDonors() {
    const { own, channels } = automaton;
    const options = models.map((model, index) => {
      const refused = model.channels !== channels;
      const why = refused ? `: ${model.channels} channels, not ${channels}` : "";
      const option = new Option(model.name + why, index);
      option.disabled = refused;
      return option;
    });
    byId("donor").replaceChildren(...options);
    const other = options.find((option, index) => !option.disabled && index !== own);
    byId("donor").value = other ? other.value : own;
  }

  function chooseModel() {
    automaton.use(Number(byId("model").value));
    fillViews(automaton.channels);
    fillDonors();
    byId("fire-rate").value = automaton.rule.fireRate;
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
    byId(id).dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** Says why nothing can be grafted, where nothing can. */
  function explainGraft() {
    const others = models.filter((_, index) => index !== automaton.own);
    if (others.some(({ channels }) => channels === automaton.channels)) return;
    try {
      automaton.check(models.indexOf(others[0]));
    } catch (error) {
      say(error.message);
    }
  }

  const togglePlaying = () => setPlaying(!playing);
  const click = (id) => () => byId(id).click();
  byId("play").addEventListener("click", togglePlaying);
  byId("step").addEventListener("click", stepOnce);
  byId("reset").addEventListener("click", reset);
  byId("model").addEventListener("change", chooseModel);
  byId("graft").addEventListener("change", explainGraft);
  byId("donor").addEventListener("change", () => brush() !== "plant" && byId("graft").click());
  byId("zoom-in").addEventListener("click", () => zoomAtCursor(1.5));
  byId("zoom-out").addEventListener("click", () => zoomAtCursor(1 / 1.5));
  for (const kind of ["input", "change"]) byId("controls").addEventListener(kind, obeyControls);

  // --- the link: the controls that are not as they were, after the # of the page's address

  const usual = () => {
    return { view: "color", "fire-rate": `${automaton.rule.fireRate}`, angle: "0", speed: "3" };
  };

  function writeLink() {
    const link = new URLSearchParams();
    if (automaton.own !== 0) link.set("model", automaton.rule.name);
    for (const id of LINKED) {
      if (byId(id).value !== usual()[id]) link.set(id, byId(id).value);
    }
    const address = new URL(location.href);
    address.hash = link;
    if (address.href !== location.href) history.replaceState(null, "", address);
  }

  function readLink() {
    const link = new URLSearchParams(location.hash.slice(1));
    const name = link.get("model") ?? models[0].name;
    const index = models.findIndex((model) => model.name === name);
    if (index < 0) say(`This page has no model “${name.slice(0, 60)}”.`);
    if (index >= 0 && index !== automaton.own) {
      byId("model").value = index;
      chooseModel();
    }
    for (const id of LINKED) {
      const control = byId(id);
      const before = control.value;
      const wanted = link.get(id) ?? usual()[id];
      control.value = wanted;
      const isNumber = wanted.trim() !== "" && Number.isFinite(Number(wanted));
      if (control.type === "range" ? isNumber : control.value === wanted) continue;
      control.value = before;
      say(`The link's ${id} is “${wanted.slice(0, 60)}”, which this page does not know.`);
    }
    obeyControls();
  }

  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link is copied. It restores model, view, fire rate, angle and speed.");
    } catch {
      say("Copy the address of this page: it restores what you see.");
    }
  }

  // Within a notebook the page has no address of its own.
  byId("link").hidden = location.protocol === "about:";
  if (!byId("link").hidden) {
    byId("controls").addEventListener("change", writeLink);
    addEventListener("hashchange", readLink);
  }
  byId("link").addEventListener("click", copyLink);

  // --- pictures and videos

  function savePicture() {
    draw();
    enlarge(canvas).toBlob((blob) => saveFile(`nca-${automaton.steps}.png`, blob));
    say("A picture is saved.");
  }

  function toggleFilm() {
    if (recording) return recording.recorder.stop();
    try {
      recording = record();
      setTimeout(() => recording?.recorder.stop(), 1000 * VIDEO_SECONDS);
      byId("film").textContent = "Stop";
      say(`Recording ${VIDEO_SECONDS} seconds …`);
    } catch {
      savePicture();
      say("This browser records no video: a picture is saved.");
    }
  }

  function record() {
    const film = enlarge(canvas);
    const mimeType = VIDEO_TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    const stream = film.captureStream(30);
    const recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: 5e6 });
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      const type = recorder.mimeType.split(";")[0];
      recording = null;
      byId("film").textContent = "Video";
      saveFile(`nca-${automaton.steps}.${type.split("/")[1]}`, new Blob(parts, { type }));
      say("A video is saved.");
    };
    recorder.start();
    return { recorder, canvas: film };
  }

  byId("save").addEventListener("click", savePicture);
  byId("film").addEventListener("click", toggleFilm);

  // --- the keyboard

  const SHORTCUTS = {
    " ": togglePlaying,
    s: stepOnce,
    r: reset,
    m: () => cycle(byId("model")),
    v: () => cycle(byId("view")),
    e: click("erase"),
    p: click("plant"),
    g: () => models.length > 1 && byId("graft").click(),
    i: click("pick"),
    z: click("zoom-in"),
    x: click("zoom-out"),
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
    if (!arrow) {
      touchCell(cursor.row, cursor.column);
      if (brush() === "pick") sayPicked();
      return;
    }
    const [row, column] = [cursor.row + arrow[0], cursor.column + arrow[1]];
    moveCursor({ row: clampCell(row), column: clampCell(column) });
  });

  // --- start

  canvas.width = canvas.height = page.size;
  byId("model").replaceChildren(...models.map(({ name }, index) => new Option(name, index)));
  for (const part of document.querySelectorAll(".several")) part.hidden = models.length < 2;
  if (models.length === 1 && models[0].name) document.title = models[0].name;
  chooseModel();
  readLink();
  followTheme(() => (changed = true));
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
    rules: () => Uint8Array.from(automaton.grid, (cell) => automaton.ruleOf[cell]),
    setRules: (values) => {
      for (const index of new Set(values)) automaton.check(index);
      automaton.grid.forEach((cell, index) => (automaton.ruleOf[cell] = values[index]));
      automaton.isMixed = true;
      changed = true;
    },
    stats: () => ({
      steps: automaton.steps,
      living: automaton.markAlive(automaton.state),
      playing,
      model: automaton.rule.name,
      channels: automaton.channels,
      size: page.size,
      compiled: COMPILED !== null, // or the plain, slower function is at work
    }),
  });
  requestAnimationFrame(frame);
}
