// The search over its evaluations: the fastest plan so far that could be chosen, the flip risk of each, and who proposed it.

function progressTraces(colours) {
  const numbers = page.plans.map((_, index) => index + 1);
  const stable = page.plans.map((plan, index) => [plan, index + 1]).filter(([plan]) => !rejected(plan));
  const timed = stable.filter(([plan]) => plan.speedup !== null && plan.source === page.latency_source);
  const risky = stable.filter(([plan]) => plan.flip_risk !== null);
  const dots = { type: "scatter", mode: "markers", hoverinfo: "none", cliponaxis: false };
  const ids = (pairs) => ({ x: pairs.map(([, x]) => x), customdata: pairs.map(([plan]) => plan.id) });
  return [
    {
      type: "scatter",
      mode: "lines",
      meta: "fastest",
      hoverinfo: "skip",
      line: { shape: "hv", color: colours.accent, width: 2 },
      x: numbers,
      y: page.fastest,
    },
    {
      ...dots,
      ...ids(timed),
      y: timed.map(([plan]) => plan.speedup),
      marker: {
        color: timed.map(([plan]) => (plan.chosen ? colours.accent : colours.stable)),
        size: timed.map(([plan]) => (plan.chosen ? 11 : 7)),
      },
    },
    {
      ...dots,
      ...ids(risky),
      yaxis: "y2",
      y: risky.map(([plan]) => plan.flip_risk),
      marker: { color: colours.stable, size: 7 },
      error_y: {
        type: "data",
        symmetric: false,
        thickness: 1,
        width: 2,
        color: colours.muted,
        visible: !many,
        array: risky.map(([plan]) => plan.flip_risk_high - plan.flip_risk),
        arrayminus: risky.map(([plan]) => plan.flip_risk - plan.flip_risk_low),
      },
    },
    {
      ...dots,
      meta: "stages",
      yaxis: "y3",
      x: numbers,
      customdata: page.plans.map((plan) => plan.id),
      y: page.plans.map((plan) => plan.stage),
      marker: {
        symbol: page.plans.map((plan) => SYMBOLS[plan.verdict]),
        color: page.plans.map((plan) => colours[plan.verdict]),
        size: 9,
      },
    },
  ];
}

function showProgress() {
  if (page.plans.length === 0) return;
  const colours = theme();
  const stages = [...new Set(page.plans.map((plan) => plan.stage))];
  const stageHeight = 40 + 22 * stages.length;
  const height = 330 + stageHeight;
  const bottom = stageHeight / (height - 60);
  const half = (1 - bottom) / 2;
  draw(
    "progress",
    progressTraces(colours),
    {
      ...layoutBase(colours, height),
      xaxis: axis(colours, {
        title: { text: "evaluation" },
        anchor: "y3",
        dtick: page.plans.length <= 20 ? 1 : undefined,
        range: [0.5, page.plans.length + 0.5],
      }),
      yaxis: axis(colours, {
        title: { text: page.latency_source ? `speedup,<br>${page.latency_source}` : "speedup,<br>not known" },
        domain: [bottom + half + 0.03, 1],
      }),
      yaxis2: axis(colours, {
        title: { text: "flip risk" },
        rangemode: "tozero",
        domain: [bottom + 0.03, bottom + half - 0.03],
      }),
      yaxis3: axis(colours, {
        domain: [0, bottom - 0.06],
        type: "category",
        categoryarray: stages,
        autorange: "reversed",
        fixedrange: true,
      }),
    },
    (id) => [make("b", {}, planTitle(planById.get(id))), definitions(planFacts(id))],
    (id) => selection.select(id, true),
  );
  legend(
    "progress-legend",
    ["line: the fastest plan so far that keeps what is required"],
    ...(page.plans.some((plan) => plan.chosen && plan.speedup !== null) ? [["large dot: the chosen plan"]] : []),
    ...[...new Set(page.plans.map((plan) => plan.verdict))].map((verdict) => [mark(verdict), verdict]),
  );
}
