// One step of a neural cellular automaton in plain JavaScript, as NCA.step in model.py takes it.
// Both pages use it: player.js shows one automaton, breed.js nine.

const ALPHA = 3;

function decodeFloats(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function encodeFloats(floats) {
  const bytes = Array.from(new Uint8Array(floats.buffer));
  return btoa(bytes.map((byte) => String.fromCharCode(byte)).join(""));
}

/** A rule from all its weights in one Float32Array, in the order in which player.py packs them. */
function makeRule(model, weights) {
  return { ...model, aliveThreshold: Math.fround(model.aliveThreshold), weights };
}

/** A square grid of cells, with a border of zeros around it that spares the bounds checks.
 *
 * Every cell follows one of several rules, by its index in `rules`. A cell perceives all its
 * neighbours, whatever rules they follow. A cell that is not mature yet, as a newly grown one is,
 * takes the rule of its mature neighbour with the largest alpha; of equals, the smaller index.
 */
class Automaton {
  constructor(size, rules, index = 0) {
    this.size = size;
    this.rules = rules;
    this.stride = size + 2;
    this.area = this.stride * this.stride;
    this.grid = Int32Array.from({ length: size * size }, (_, index) =>
      this.cellAt(Math.floor(index / size), index % size),
    );
    this.alive = new Uint8Array(this.area);
    this.before = new Uint8Array(this.area);
    this.near = new Uint8Array(this.area);
    this.cells = new Int32Array(size * size);
    this.firing = new Int32Array(size * size);
    this.lanes = new Int32Array(LANES);
    this.ruleOf = new Uint8Array(this.area);
    this.fireRate = rules[index].fireRate;
    this.angle = 0; // radians
    this.own = index;
    this.allocate();
    this.reset();
  }

  /** The rule of the body: that of all cells but the grafted ones. */
  get rule() {
    return this.rules[this.own];
  }

  allocate() {
    this.channels = this.rule.channels;
    this.state = new Float32Array(this.area * this.channels);
    this.next = new Float32Array(this.area * this.channels);
  }

  /** Lets another rule live in this body; channels that it does not have are lost. */
  use(index) {
    const { state, channels } = this;
    this.own = index;
    this.allocate();
    const shared = Math.min(channels, this.channels);
    for (const cell of this.grid) {
      const start = cell * channels;
      this.state.set(state.subarray(start, start + shared), cell * this.channels);
    }
    this.unify();
  }

  unify() {
    this.ruleOf.fill(this.own);
    this.isMixed = false;
  }

  reset() {
    this.state.fill(0);
    this.steps = 0;
    this.unify();
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
    const { channels } = this;
    this.disc(row, column, diameter, (cell) =>
      this.state.fill(0, cell * channels, (cell + 1) * channels),
    );
  }

  plant(row, column, index = this.own) {
    const { channels } = this;
    this.graft(row, column, 1, index);
    this.disc(row, column, 1, (cell) => {
      this.state.fill(0, cell * channels, cell * channels + ALPHA);
      this.state.fill(1, cell * channels + ALPHA, (cell + 1) * channels);
    });
  }

  /** Refuses, by name, a rule that cannot live on this body's grid. */
  check(index) {
    const { name, channels } = this.rules[index];
    if (channels === this.channels) return;
    throw new RangeError(
      `“${name}” has ${channels} channels, this body ${this.channels}: they cannot share a grid.`,
    );
  }

  /** Lets the cells of a disc follow another rule; what they hold stays. */
  graft(row, column, diameter, index) {
    this.check(index);
    this.disc(row, column, diameter, (cell) => (this.ruleOf[cell] = index));
    this.isMixed ||= index !== this.own;
  }

  /** Marks the cells whose own alpha is above their rule's threshold, or NaN, and counts them. */
  markAlive(state) {
    const { grid, alive, channels, rules, ruleOf, rule } = this;
    let { aliveThreshold } = rule;
    let count = 0;
    for (const cell of grid) {
      if (this.isMixed) aliveThreshold = rules[ruleOf[cell]].aliveThreshold;
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

  /** Gives each listed cell that is not mature the rule of its strongest mature neighbour. */
  inherit(count) {
    const { state, cells, alive, ruleOf, stride, channels } = this;
    for (let index = 0; index < count; index++) {
      const cell = cells[index];
      if (alive[cell]) continue;
      let strongest = -Infinity;
      for (let center = cell - stride; center <= cell + stride; center += stride) {
        for (let other = center - 1; other <= center + 1; other++) {
          const alpha = state[other * channels + ALPHA];
          if (!alive[other] || alpha < strongest || Number.isNaN(alpha)) continue;
          if (alpha === strongest && ruleOf[other] >= ruleOf[cell]) continue;
          strongest = alpha;
          ruleOf[cell] = ruleOf[other];
        }
      }
    }
  }

  /** One step: the cells that fire add what their rule answers; then the dead are emptied. */
  step({ fireAll = false } = {}) {
    const { state, next, cells, before, near, firing, fireRate, channels, rules } = this;
    const count = this.listCells();
    if (this.isMixed) this.inherit(count);

    next.fill(0);
    let fired = 0;
    for (let index = 0; index < count; index++) {
      const start = cells[index] * channels;
      for (let k = 0; k < channels; k++) next[start + k] = state[start + k];
      if (fireAll || Math.random() < fireRate) firing[fired++] = cells[index];
    }
    if (this.isMixed) for (let index = 0; index < rules.length; index++) this.update(index, fired);
    else this.update(this.own, fired);

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

  /** Updates those of the firing cells that follow one rule, LANES at a time. */
  update(index, fired) {
    const { firing, ruleOf, lanes, channels, next } = this;
    const network = networkFor(this.rules[index]);
    const { delta } = network;
    let filled = 0;
    for (let at = 0; at < fired; at++) {
      const cell = firing[at];
      if (ruleOf[cell] === index) {
        this.perceive(cell * channels, network.perception, filled);
        lanes[filled++] = cell;
      }
      if (filled < LANES && (at < fired - 1 || !filled)) continue;
      network.respond();
      for (let lane = 0; lane < filled; lane++) {
        const start = lanes[lane] * channels;
        for (let k = 0; k < channels; k++) next[start + k] += delta[LANES * k + lane];
      }
      filled = 0;
    }
  }

  /** Fills one lane of `perception`: a cell's state and Sobel gradients in the turned frame. */
  perceive(start, perception, lane) {
    const { state, channels } = this;
    const row = this.stride * channels;
    const cosine = Math.cos(this.angle);
    const sine = Math.sin(this.angle);
    const block = LANES * channels;
    for (let k = 0, here = start, at = lane; k < channels; k++, here++, at += LANES) {
      const up = here - row;
      const down = here + row;
      const falling = state[down + channels] - state[up - channels]; // one diagonal
      const rising = state[up + channels] - state[down - channels]; // the other
      const x = (falling + rising + 2 * (state[here + channels] - state[here - channels])) / 8;
      const y = (falling - rising + 2 * (state[down] - state[up])) / 8;
      perception[at] = state[here];
      perception[at + block] = cosine * x - sine * y;
      perception[at + 2 * block] = sine * x + cosine * y;
    }
  }

  /** The grid without its border, as one array of (size, size, channels). */
  read() {
    const { channels } = this;
    const values = new Float32Array(this.grid.length * channels);
    this.grid.forEach((cell, index) => {
      values.set(this.state.subarray(cell * channels, (cell + 1) * channels), index * channels);
    });
    return values;
  }

  write(values) {
    const { channels } = this;
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
