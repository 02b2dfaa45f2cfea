// Activation ranges: each node a point in the order of flow, blocks side by side, with the limits of the low dtype.

const VALUES = {
  largest: "the largest of all that must fit",
  input: "inputs",
  output: "result",
  inside: "inside the kernel (the sum of a mean)",
};

function magnitude(node, what) {
  if (what !== "largest") return node[what];
  const known = [node.input, node.output, node.inside];
  return known.includes(null) ? null : Math.max(...known);
}

// Nodes grouped into blocks: what comes before the layers, each layer, what comes after, for each family.
function flow() {
  const blocks = new Map();
  let order = 0;
  for (const family of ["encoder", "decoder"]) {
    const indices = [...page.nodes.keys()].filter((index) => page.roles[page.nodes[index].role].family === family);
    const first = indices.findIndex((index) => page.nodes[index].layer !== null);
    const short = family.slice(0, 3);
    const block = (index, place) => page.nodes[index].layer ?? (place < first ? -1 : Infinity);
    const sorted = indices.map((index, place) => [index, block(index, place)]).sort((one, other) => one[1] - other[1] || one[0] - other[0]);
    for (const [index, layer] of sorted) {
      const name = layer === -1 ? `${short} in` : layer === Infinity ? `${short} out` : `${short} ${layer}`;
      blocks.set(name, [...(blocks.get(name) ?? []), [index, order++]]);
    }
    order += 2;
  }
  return blocks;
}

function rangeTraces(blocks, colours, type, what) {
  const places = [...blocks.values()].flat().filter(([index]) => type === "" || page.nodes[index].op_type === type);
  const known = places.filter(([index]) => magnitude(page.nodes[index], what) > 0);
  const kinds = {
    fits: { keep: (node) => node.fixed === null && !node.beyond_range, symbol: "circle", color: colours.stable },
    beyond: { keep: (node) => node.fixed === null && node.beyond_range, symbol: "triangle-up", color: colours.mismatch },
    fixed: { keep: (node) => node.fixed !== null, symbol: "diamond-open", color: colours.error },
  };
  const points = Object.entries(kinds).map(([kind, { keep, symbol, color }]) => {
    const own = known.filter(([index]) => keep(page.nodes[index]));
    return {
      type: "scatter", mode: "markers", meta: kind, hoverinfo: "none", marker: { symbol, color, size: 7 },
      customdata: own.map(([index]) => index), x: own.map(([, x]) => x), y: own.map(([index]) => magnitude(page.nodes[index], what)),
    };
  });
  const tops = { type: "scatter", mode: "lines", meta: "largest", hoverinfo: "skip", line: { color: colours.muted, width: 2 }, x: [], y: [] };
  for (const block of blocks.values()) {
    const own = block.filter((place) => known.includes(place));
    if (own.length === 0) continue;
    const top = Math.max(...own.map(([index]) => magnitude(page.nodes[index], what)));
    tops.x.push(block[0][1] - 0.5, block.at(-1)[1] + 0.5, null);
    tops.y.push(top, top, null);
  }
  return { traces: [tops, ...points], missing: places.length - known.length };
}

function limitLines(colours) {
  const { largest, safe, smallest_normal: normal, range_safety: safety, dtype } = page.limits;
  const lines = [[largest, `largest ${dtype}: ${number(largest, 5)}`, "solid", 0], [normal, `smallest normal: ${number(normal)}`, "solid", 0]];
  if (safety !== 1) lines.push([safe, `safe, divided by ${number(safety)}: ${number(safe, 5)}`, "dash", 1]);
  return {
    shapes: lines.map(([value, , dash]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: colours.mismatch, width: 1.5, dash } })),
    annotations: lines.map(([value, text, , below]) => ({
      text, xref: "paper", x: 1, xanchor: "right", y: Math.log10(value), yanchor: below ? "top" : "bottom", showarrow: false, font: { size: 11, color: colours.mismatch }, bgcolor: colours.card, opacity: 0.9,
    })),
  };
}

function showRanges() {
  if (!page.limits) return;
  const colours = theme();
  const blocks = flow();
  const type = document.getElementById("range-type").value;
  const what = document.getElementById("range-what").value;
  const { traces, missing } = rangeTraces(blocks, colours, type, what);
  const middles = [...blocks].map(([name, block]) => [name, (block[0][1] + block.at(-1)[1]) / 2]);
  draw("ranges", traces, {
    ...layoutBase(colours, 430),
    ...limitLines(colours),
    xaxis: axis(colours, { tickvals: middles.map(([, middle]) => middle), ticktext: middles.map(([name]) => name), showgrid: false, tickangle: -45 }),
    yaxis: axis(colours, { type: "log", title: { text: "largest magnitude" }, exponentformat: "power", dtick: "auto" }),
  }, (index) => {
    const node = page.nodes[index];
    const word = node.fixed ? `never low: ${node.fixed}` : node.beyond_range ? "beyond the safe range" : "fits";
    const under = node.underflow === null ? [] : [["below smallest normal", `${(100 * node.underflow).toFixed(1)}% of the result`]];
    return [make("b", {}, node.key), definitions([["op type", node.op_type], ["", word], ["inputs", number(node.input, 4)], ["result", number(node.output, 4)],
      ...(node.inside ? [["inside", number(node.inside, 4)]] : []), ...under])];
  });
  legend("ranges-legend", [mark("stable"), "fits"], [mark("nonfinite beyond"), "beyond the safe range"], ["◇ never low"], ["grey line: the largest of its block"],
    ...(missing ? [[`${missing} nodes without a point: only zeros, not finite, or not measured`]] : []));
}

function startRanges() {
  if (!page.limits) return;
  const types = [...new Set(page.nodes.map((node) => node.op_type))].sort();
  document.getElementById("range-type").append(make("option", { value: "" }, "all"), ...types.map((type) => make("option", { value: type }, type)));
  document.getElementById("range-what").append(...Object.entries(VALUES).map(([value, text]) => make("option", { value }, text)));
  for (const id of ["range-type", "range-what"]) document.getElementById(id).addEventListener("change", showRanges);
}
