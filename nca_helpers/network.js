"use strict";

// The network of a rule, for LANES cells at once: two dense layers. What they mean is `plainDense`.

const LANES = 16; // Each weight is read once for all of them.

/** A dense layer for LANES cells, whose values lie side by side.
 *
 * All but `floor` are places in `memory`, in floats. What is below `floor` becomes it; a NaN stays,
 * as in JAX.
 */
function plainDense(memory, kernel, bias, inputs, outputs, width, units, floor) {
  for (let unit = 0; unit < units; unit++) {
    for (let lane = 0; lane < LANES; lane += 4) {
      let a = memory[bias + unit];
      let b = a;
      let c = a;
      let d = a;
      for (let input = 0, at = inputs + lane; input < width; input++, at += LANES) {
        const weight = memory[kernel + unit * width + input];
        a += weight * memory[at];
        b += weight * memory[at + 1];
        c += weight * memory[at + 2];
        d += weight * memory[at + 3];
      }
      const at = outputs + unit * LANES + lane;
      memory[at] = a < floor ? floor : a;
      memory[at + 1] = b < floor ? floor : b;
      memory[at + 2] = c < floor ? floor : c;
      memory[at + 3] = d < floor ? floor : d;
    }
  }
}

/** The same in WebAssembly, which handles four floats in one instruction: several times as fast.
 *
 * Its places are in bytes. The instructions are those named beside the numbers; the locals are the
 * parameters of the plain function, and those that it needs besides.
 */
function compileDense() {
  const [KERNEL, BIAS, INPUTS, OUTPUTS, WIDTH, UNITS, FLOOR, AT, LEFT, WEIGHT, ...SUMS] =
    Array(14).keys();
  const [FOUR, SIXTY_FOUR, MINUS_ONE] = [[0x04], [0xc0, 0x00], [0x7f]]; // as LEB128
  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const add = (local, count) => [...get(local), 0x41, ...count, 0x6a, ...set(local)]; // i32.add
  const spread = (place) => [...get(place), 0xfd, 0x09, 2, 0]; // v128.load32_splat
  const loop = (...body) => [0x03, 0x40, ...body.flat(), 0x0b]; // loop … end
  const again = (count) => [...add(count, MINUS_ONE), ...get(count), 0x0d, 0]; // br_if, to the loop
  const eachSum = (build) => SUMS.flatMap((sum, index) => build(sum, 16 * index));
  const load = (offset) => [0xfd, 0x00, 4, offset]; // v128.load
  const store = (offset) => [0xfd, 0x0b, 4, offset]; // v128.store
  const [multiply, plus, maximum] = [[0xfd, 0xe6, 1], [0xfd, 0xe4, 1], [0xfd, 0xe9, 1]]; // f32x4
  const splat = [0xfd, 0x13]; // f32x4.splat

  const ofInput = [
    ...spread(KERNEL), ...set(WEIGHT),
    ...eachSum((sum, offset) => [
      ...get(sum), ...get(WEIGHT), ...get(AT), ...load(offset), ...multiply, ...plus, ...set(sum),
    ]),
    ...add(KERNEL, FOUR), ...add(AT, SIXTY_FOUR), ...again(LEFT),
  ];
  const ofUnit = [
    ...spread(BIAS), ...set(WEIGHT),
    ...eachSum((sum) => [...get(WEIGHT), ...set(sum)]),
    ...get(INPUTS), ...set(AT), ...get(WIDTH), ...set(LEFT),
    ...loop(ofInput),
    ...eachSum((sum, offset) => [
      ...get(OUTPUTS), ...get(sum), ...get(FLOOR), ...splat, ...maximum, ...store(offset),
    ]),
    ...add(BIAS, FOUR), ...add(OUTPUTS, SIXTY_FOUR), ...again(UNITS),
  ];

  const [i32, f32, v128] = [0x7f, 0x7d, 0x7b];
  const long = (number) => [(number & 127) | 128, number >> 7]; // LEB128, in two bytes
  const name = (text) => [text.length, ...new TextEncoder().encode(text)];
  const section = (id, ...content) => [id, ...long(content.length), ...content];
  const code = [2, 2, i32, 5, v128, ...loop(ofUnit), 0x0b]; // locals, by their types; the body
  const bytes = [
    ...new TextEncoder().encode("\0asm"), 1, 0, 0, 0,
    ...section(1, 1, 0x60, 7, ...Array(6).fill(i32), f32, 0), // the type of the function
    ...section(2, 1, ...name("page"), ...name("memory"), 2, 0, 1), // an imported memory
    ...section(3, 1, 0),
    ...section(7, 1, ...name("dense"), 0, 0), // what is exported
    ...section(10, 1, ...long(code.length), ...code),
  ];
  try {
    return new WebAssembly.Module(Uint8Array.from(bytes));
  } catch {
    return null; // An old browser: the plain function does it.
  }
}

const COMPILED = compileDense();

/** The two layers of rules of one shape: what cells perceive in, how they change out. */
class Network {
  constructor(channels, hidden) {
    const sizes = {
      hiddenKernel: 3 * channels * hidden,
      hiddenBias: hidden,
      updateKernel: hidden * channels,
      updateBias: channels,
      perception: LANES * 3 * channels,
      hidden: LANES * hidden,
      delta: LANES * channels,
    };
    const total = Object.values(sizes).reduce((sum, size) => sum + size);
    const pages = Math.ceil((4 * total) / 65_536); // as WebAssembly counts memory
    const memory = COMPILED && new WebAssembly.Memory({ initial: pages });
    const floats = new Float32Array(memory ? memory.buffer : total);
    const at = {}; // where each part begins; the weights first, as they come
    let start = 0;
    for (const [part, size] of Object.entries(sizes)) {
      at[part] = start;
      start += size;
    }
    this.floats = floats;
    this.perception = floats.subarray(at.perception, at.hidden);
    this.delta = floats.subarray(at.delta, total);

    let dense = (...places) => plainDense(floats, ...places);
    if (COMPILED) {
      const { exports } = new WebAssembly.Instance(COMPILED, { page: { memory } });
      dense = (kernel, bias, inputs, outputs, width, units, floor) =>
        exports.dense(4 * kernel, 4 * bias, 4 * inputs, 4 * outputs, width, units, floor);
    }

    /** Fills this.delta: the network's answer to this.perception. */
    this.respond = () => {
      dense(at.hiddenKernel, at.hiddenBias, at.perception, at.hidden, 3 * channels, hidden, 0);
      dense(at.updateKernel, at.updateBias, at.hidden, at.delta, hidden, channels, -Infinity);
    };
  }

  load({ weights }) {
    if (this.weights !== weights) this.floats.set(weights);
    this.weights = weights;
  }
}

const networks = new Map(); // by shape

/** The network of a rule's shape, with its weights in it. */
function networkFor(rule) {
  const shape = `${rule.channels}, ${rule.hidden}`;
  if (!networks.has(shape)) networks.set(shape, new Network(rule.channels, rule.hidden));
  const network = networks.get(shape);
  network.load(rule);
  return network;
}

