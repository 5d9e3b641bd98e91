// What the runner of DSPy's interpreter imports from deno.land, so that a start asks no server for it.

/** Yield the lines of a reader, without their ends. A last line without an end counts, an empty one does not. */
export async function* readLines(reader) {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(65536);
  let pieces = [];
  for (let count; (count = await reader.read(chunk)) !== null;) {
    const lines = decoder.decode(chunk.subarray(0, count), { stream: true }).split("\n");
    const last = lines.pop();
    for (const line of lines) {
      pieces.push(line);
      yield pieces.join("").replace(/\r$/, "");
      pieces = [];
    }
    pieces.push(last);
  }
  const rest = pieces.join("");
  if (rest) yield rest;
}
