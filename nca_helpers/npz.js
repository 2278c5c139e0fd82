// A checkpoint of `save_nca`, written by a page: a zip, not compressed, of NumPy arrays.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Joins parts: strings of ASCII, typed arrays, and [bits, value] for little-endian integers. */
function joinBytes(parts) {
  const chunks = parts.map((part) => {
    if (typeof part === "string") return Uint8Array.from(part, (letter) => letter.charCodeAt(0));
    if (Array.isArray(part)) {
      const [bits, value] = part;
      return Uint8Array.from({ length: bits / 8 }, (_, index) => value >>> (8 * index));
    }
    return new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
  });
  const joined = new Uint8Array(chunks.reduce((length, chunk) => length + chunk.length, 0));
  let start = 0;
  for (const chunk of chunks) {
    joined.set(chunk, start);
    start += chunk.length;
  }
  return joined;
}

/** NumPy's .npy: `shape` as Python writes a tuple; the first axis changes fastest. */
function npy(type, shape, values) {
  const header = `{'descr': '${type}', 'fortran_order': True, 'shape': ${shape}, }`;
  const length = 64 * Math.ceil((header.length + 11) / 64) - 10; // so that the values are aligned
  return joinBytes(["\x93NUMPY\x01\x00", [16, length], header.padEnd(length - 1), "\n", values]);
}

/** A zip of files by name, stored as they are, dated 1980. */
function zip(files) {
  const [entries, directory] = [[], []];
  let offset = 0;
  for (const [name, bytes] of Object.entries(files)) {
    const about = joinBytes([
      [16, 20], [16, 0], [16, 0], [16, 0], [16, 0x21], // version, flags, stored, time, date
      [32, crc32(bytes)], [32, bytes.length], [32, bytes.length], [16, name.length], [16, 0],
    ]);
    const rest = [[16, 0], [16, 0], [16, 0], [32, 0], [32, offset]]; // comment, disk, attributes
    const entry = joinBytes(["PK\x03\x04", about, name, bytes]);
    directory.push("PK\x01\x02", [16, 20], about, ...rest, name);
    entries.push(entry);
    offset += entry.length;
  }
  const index = joinBytes(directory);
  const count = [16, entries.length];
  const sizes = [[32, index.length], [32, offset], [16, 0]];
  return joinBytes([...entries, index, "PK\x05\x06", [16, 0], [16, 0], count, count, ...sizes]);
}

/** A model's checkpoint; `meta` is noted beside what `load_nca` needs. */
function checkpoint(model, weights, meta) {
  const { channels, hidden, fireRate, aliveThreshold } = model;
  const own = { channels, hidden, fire_rate: fireRate, alive_threshold: aliveThreshold };
  const json = JSON.stringify({ format: 1, ...own, ...meta });
  const text = Uint32Array.from(json, (letter) => letter.codePointAt(0));
  let start = 0;
  const take = (length) => weights.subarray(start, (start += length));
  return zip({
    "meta.npy": npy(`<U${text.length}`, "()", text),
    // A page keeps kernels transposed, which is what the order of the axes says.
    "hidden/kernel.npy": npy("<f4", `(${3 * channels}, ${hidden})`, take(3 * channels * hidden)),
    "hidden/bias.npy": npy("<f4", `(${hidden},)`, take(hidden)),
    "update/kernel.npy": npy("<f4", `(${hidden}, ${channels})`, take(hidden * channels)),
    "update/bias.npy": npy("<f4", `(${channels},)`, take(channels)),
  });
}
