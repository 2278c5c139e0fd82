// What both pages do with a body: paint it, enlarge the picture, save a file.

const POSITIVE = [217, 95, 2];
const NEGATIVE = [43, 108, 176];
// Of grafted rules: Okabe and Ito's colours, which the colour-blind can tell apart.
const RULE_COLORS = [
  [213, 94, 0], [0, 114, 178], [204, 121, 167], [230, 159, 0], [86, 180, 233], [0, 158, 115],
];
const PICTURE_SIZE = 576; // pixels, at least, of a saved picture or video

const byId = (id) => document.getElementById(id);
const theme = {}; // the canvas's own colour, behind all that is transparent, and that of text
const ruleColor = (index) => RULE_COLORS[index % RULE_COLORS.length];

/** Reads the theme's colours, now and whenever they change. */
function followTheme(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["stage", "ink"]) {
      const color = style.getPropertyValue(`--${name}`).trim();
      theme[name] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    }
    changed();
  };
  dark.addEventListener("change", read);
  read();
}

/** Paints a body into an ImageData of a pixel a cell.
 *
 * `view` is "color", "rules" (colour, grafted cells tinted by the rule that they follow), or a
 * channel.
 */
function paint(automaton, picture, view = "color") {
  const { grid, state, channels, ruleOf, rules, own } = automaton;
  const pixels = picture.data;
  const channel = Number(view);
  for (let index = 0, at = 0; index < grid.length; index++, at += 4) {
    const cell = grid[index];
    const start = cell * channels;
    if (view === "color" || view === "rules") {
      paintColor(pixels, at, state, start);
      const lives = state[start + ALPHA] > rules[ruleOf[cell]].aliveThreshold;
      const isGrafted = ruleOf[cell] !== own && lives;
      if (view === "rules" && isGrafted) tint(pixels, at, ruleColor(ruleOf[cell]));
    } else if (channel === ALPHA) {
      paintValue(pixels, at, state[start + ALPHA], theme.ink, theme.stage);
    } else {
      paintValue(pixels, at, state[start + channel], POSITIVE, NEGATIVE);
    }
    pixels[at + 3] = 255;
  }
}

function paintColor(pixels, at, state, start) {
  const alpha = Math.min(1, Math.max(0, state[start + ALPHA]));
  for (let k = 0; k < 3; k++) {
    pixels[at + k] = 255 * state[start + k] + (1 - alpha) * theme.stage[k];
  }
}

function paintValue(pixels, at, value, positive, negative) {
  const strength = Math.min(1, Math.abs(value));
  const color = value < 0 ? negative : positive;
  for (let k = 0; k < 3; k++) {
    pixels[at + k] = theme.stage[k] + strength * (color[k] - theme.stage[k]);
  }
}

function tint(pixels, at, color) {
  for (let k = 0; k < 3; k++) pixels[at + k] += 0.6 * (color[k] - pixels[at + k]);
}

/** Copies a canvas onto another one, or a new one, that is a whole number of times as large. */
function enlarge(canvas, target = document.createElement("canvas")) {
  const scale = Math.ceil(PICTURE_SIZE / canvas.width);
  if (target.width !== scale * canvas.width) {
    target.width = scale * canvas.width;
    target.height = scale * canvas.height;
  }
  const context = target.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, target.width, target.height);
  return target;
}

function saveFile(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
