// What lies between the cells. A small network draws each cell as `factor` × `factor` pixels, from
// what the cells around a pixel hold and from its place among them, as notebook 04 trains it.

// The decoder was trained for eight pixels a cell: with fewer, some of those places are drawn.
const FIRST_PLACE = 1 / 16;

class Decoder {
  /** Unpacks the two layers, in the order in which player.py packs them; `factor` is even. */
  constructor({ channels, hidden, weights }, factor) {
    const floats = decodeFloats(weights);
    let start = 0;
    const take = (length) => floats.subarray(start, (start += length));
    Object.assign(this, { channels, hidden, factor });
    this.left = new Float32Array(hidden);
    this.slope = new Float32Array(hidden);
    this.kernel = take(channels * hidden);
    const places = take(8 * hidden);
    const bias = take(hidden);
    this.colour = take(4 * hidden);
    this.colourBias = take(4);
    // What a pixel's place adds to the hidden layer does not depend on the state.
    this.table = new Float32Array(factor * factor * hidden);
    for (let pixel = 0, at = 0; pixel < factor * factor; pixel++) {
      const [down, right] = [Math.floor(pixel / factor), pixel % factor].map(
        (index) => 2 * Math.PI * (index / factor + FIRST_PLACE),
      );
      const turns = [down, right, 2 * down, 2 * right];
      const told = [...turns.map(Math.sin), ...turns.map(Math.cos)];
      for (let unit = 0; unit < hidden; unit++) {
        this.table[at++] = told.reduce((sum, x, k) => sum + x * places[k * hidden + unit], bias[unit]);
      }
    }
  }

  /** Draws all pixels into an ImageData of `factor` pixels a cell. */
  draw(automaton, picture) {
    const { size, stride, grid, area, state } = automaton;
    const { channels, hidden, kernel, factor } = this;
    const pixels = new Uint32Array(picture.data.buffer);
    const [red, green, blue] = theme.stage;
    picture.data.set([red, green, blue, 255]);
    pixels.fill(pixels[0]);
    // The hidden layer's answer to a cell, interpolated, is its answer to interpolated cells.
    if (this.full?.length !== area) {
      this.answers = new Float32Array(area * hidden);
      this.full = new Uint8Array(area);
    }
    const { answers, full } = this;
    for (const cell of grid) {
      const to = cell * hidden;
      if (full[cell]) answers.fill(0, to, to + hidden);
      full[cell] = 0;
      for (let k = 0; k < channels; k++) {
        const value = state[cell * channels + k];
        if (value === 0) continue;
        full[cell] = 1;
        for (let unit = 0; unit < hidden; unit++) answers[to + unit] += value * kernel[k * hidden + unit];
      }
    }
    for (let row = -1; row < size; row++) {
      for (let column = -1, cell = (row + 1) * stride; column < size; column++, cell++) {
        const corners = [cell, cell + 1, cell + stride, cell + stride + 1];
        if (!corners.some((corner) => full[corner])) continue;
        this.drawSquare(state, answers, corners, (down, right, rgba) => {
          const y = row * factor + factor / 2 + down;
          const x = column * factor + factor / 2 + right;
          const isInside = Math.min(x, y) >= 0 && Math.max(x, y) < size * factor;
          if (isInside) paintColor(picture.data, 4 * (y * size * factor + x), rgba, 0);
        });
      }
    }
  }

  /** Draws the pixels between the centres of four cells. */
  drawSquare(state, answers, corners, paint) {
    const { channels, hidden, table, colour, colourBias, left, slope, factor } = this;
    const [a, b, c, d] = corners.map((cell) => cell * hidden);
    const [p, q, r, s] = corners.map((cell) => cell * channels);
    const rgba = new Float64Array(4);
    for (let i = 0, at = 0; i < factor; i++) {
      const down = i / factor + FIRST_PLACE;
      for (let unit = 0; unit < hidden; unit++) {
        left[unit] = answers[a + unit] + down * (answers[c + unit] - answers[a + unit]);
        slope[unit] = answers[b + unit] + down * (answers[d + unit] - answers[b + unit]) - left[unit];
      }
      for (let j = 0; j < factor; j++) {
        const right = j / factor + FIRST_PLACE;
        let red = colourBias[0];
        let green = colourBias[1];
        let blue = colourBias[2];
        let alpha = colourBias[3];
        for (let unit = 0, to = 0; unit < hidden; unit++, to += 4) {
          const active = left[unit] + right * slope[unit] + table[at++];
          if (active <= 0) continue; // relu
          red += active * colour[to];
          green += active * colour[to + 1];
          blue += active * colour[to + 2];
          alpha += active * colour[to + 3];
        }
        rgba[0] = red;
        rgba[1] = green;
        rgba[2] = blue;
        rgba[3] = alpha;
        for (let k = 0; k < 4; k++) {
          const above = state[p + k] + right * (state[q + k] - state[p + k]);
          const below = state[r + k] + right * (state[s + k] - state[r + k]);
          rgba[k] += above + down * (below - above);
        }
        paint(i, j, rgba);
      }
    }
  }
}
