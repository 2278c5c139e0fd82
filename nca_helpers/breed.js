// Breed by hand: a parent in the middle and its eight children. Who is chosen is the next parent.
//
// For tests and the curious, window.breed offers
//   choose(place), undo()               as a click on a body and on the button do
//   step(count = 1), pause()            all nine advance; the clock stops
//   weights(place)                      a Float32Array, in the page's order
//   stats()                             {generation, steps, living, rate}

{
  const BODIES = 9;
  const PARENT = 4; // its place
  const WEAKEST = 0.01; // of the slider; each place is √2 times as strong
  const FRAME_BUDGET = 40; // milliseconds of stepping, after which a frame is shown whatever is due
  const PLACEHOLDER = "@weights@"; // stands for the weights in page.player

  const page = JSON.parse(byId("data").textContent);
  const { channels, hidden } = page.model;
  const layers = [3 * channels * hidden, hidden, channels * hidden, channels];
  const picture = new ImageData(page.size, page.size);
  const contexts = [];
  const history = []; // of litters: {weights, seed, strength} is all that one is made from
  let litter = { weights: decodeFloats(page.model.weights), seed: newSeed(), strength: 0 };
  let bodies = [];
  let next = 0; // whose turn to step it is
  let playing = true;
  const rate = { value: 0, steps: 0, since: performance.now() };

  // --- heredity

  function newSeed() {
    return crypto.getRandomValues(new Uint32Array(1))[0];
  }

  /** Normal numbers from a seed: Mulberry32 and the method of Box and Muller. */
  function normals(seed) {
    const uniform = () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  /** A child's weights: each moves by `strength` times the root mean square of its layer's. */
  function mutate(parent, strength, normal) {
    const child = parent.slice();
    let start = 0;
    for (const length of layers) {
      const layer = child.subarray(start, (start += length));
      const size = Math.sqrt(layer.reduce((sum, weight) => sum + weight * weight, 0) / length);
      for (let index = 0; index < length; index++) layer[index] += strength * size * normal();
    }
    return child;
  }

  /** Lets a parent and its children grow. */
  function bear() {
    const { weights, seed, strength } = litter;
    const normal = normals(seed);
    bodies = Array.from({ length: BODIES }, (_, place) => {
      const own = place === PARENT ? weights : mutate(weights, strength, normal);
      const automaton = new Automaton(page.size, [makeRule(page.model, own)]);
      return { weights: own, automaton, changed: true };
    });
    byId("undo").disabled = history.length === 0;
    byId("status").textContent = `Generation ${history.length}`;
    restart();
  }

  function choose(place) {
    history.push(litter);
    litter = { weights: bodies[place].weights, seed: newSeed(), strength: strength() };
    bear();
  }

  function undo() {
    if (history.length) litter = history.pop();
    bear();
  }

  // --- time

  function restart() {
    for (const body of bodies) {
      body.automaton.reset();
      body.changed = true;
    }
    next = 0;
    rate.steps = 0;
  }

  function advance(count = 1) {
    for (; count > 0; count--) {
      bodies[next].automaton.step();
      bodies[next].changed = true;
      next = (next + 1) % BODIES;
      rate.steps++;
    }
  }

  function measureRate() {
    const now = performance.now();
    if (now - rate.since < 500) return;
    rate.value = (1000 * rate.steps) / BODIES / (now - rate.since);
    rate.steps = 0;
    rate.since = now;
    byId("rate").textContent = `${bodies[0].automaton.steps} steps · ${Math.round(rate.value)}/s`;
    reportFates();
  }

  /** Says of which bodies nothing is left, or no numbers: now and then, for it takes its time. */
  function reportFates() {
    bodies.forEach(({ automaton }, place) => {
      const lives = automaton.markAlive(automaton.state) > 0;
      const fate = automaton.isFinite() ? (lives ? "" : "died") : "burst";
      const label = byId("stage").children[place].lastChild;
      if (label.textContent !== fate) label.textContent = fate;
    });
  }

  function draw() {
    bodies.forEach((body, place) => {
      if (!body.changed) return;
      body.changed = false;
      paint(body.automaton, picture);
      contexts[place].putImageData(picture, 0, 0);
    });
  }

  /** At most one step of each body a frame; of a slow machine, as many bodies as fit. */
  function frame() {
    const deadline = performance.now() + FRAME_BUDGET;
    for (let due = playing ? BODIES : 0; due > 0 && performance.now() < deadline; due--) advance();
    measureRate();
    draw();
    requestAnimationFrame(frame);
  }

  // --- to keep

  function saveCheckpoint() {
    const meta = { regime: "bred", generations: history.length };
    const bytes = checkpoint(page.model, litter.weights, meta);
    saveFile(`bred-${history.length}.npz`, new Blob([bytes]));
    byId("status").textContent = "Saved: load_nca reads it.";
  }

  function savePage() {
    const content = page.player.replace(PLACEHOLDER, encodeFloats(litter.weights));
    saveFile(`bred-${history.length}.html`, new Blob([content], { type: "text/html" }));
    byId("status").textContent = "Saved: a page to draw on.";
  }

  // --- controls

  const strength = () => WEAKEST * Math.SQRT2 ** Number(byId("strength").value);

  function obeyStrength() {
    const text = `${(100 * strength()).toPrecision(2)} %`;
    byId("strength-text").textContent = text;
    byId("strength").setAttribute("aria-valuetext", text);
  }

  function slide(steps) {
    byId("strength")[steps < 0 ? "stepDown" : "stepUp"]();
    obeyStrength();
  }

  for (let place = 0; place < BODIES; place++) {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = page.size;
    contexts.push(canvas.getContext("2d"));
    const label = `Body ${place + 1} of ${BODIES}${place === PARENT ? ", the parent" : ""}`;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-keyshortcuts", place + 1);
    button.append(canvas, document.createElement("span"));
    button.addEventListener("click", () => choose(place));
    byId("stage").append(button);
  }
  byId("undo").addEventListener("click", undo);
  byId("regrow").addEventListener("click", restart);
  byId("strength").addEventListener("input", obeyStrength);
  byId("save").addEventListener("click", saveCheckpoint);
  byId("save-page").addEventListener("click", savePage);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    if (key >= "1" && key <= `${BODIES}`) choose(Number(key) - 1);
    if (key === "u") undo();
    if (key === "r") restart();
    if (key === "-") slide(-1);
    if (key === "+" || key === "=") slide(1);
  });

  obeyStrength();
  litter.strength = strength();
  bear();
  followTheme(() => bodies.forEach((body) => (body.changed = true)));

  window.breed = Object.freeze({
    choose,
    undo,
    step: (count = 1) => advance(count * BODIES),
    pause: () => (playing = false),
    weights: (place) => bodies[place].weights.slice(),
    stats: () => ({
      generation: history.length,
      steps: bodies.map(({ automaton }) => automaton.steps),
      living: bodies.map(({ automaton }) => automaton.markAlive(automaton.state)),
      rate: rate.value,
    }),
  });
  requestAnimationFrame(frame);
}
