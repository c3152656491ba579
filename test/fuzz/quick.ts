import { Random } from "../../src/common/random.js";
import { TARGETS } from "./formats/index.js";
import { judge } from "./target.js";
console.warn = console.error = () => undefined;
for (const t of TARGETS) {
  if (process.argv[2] && !t.name.includes(process.argv[2])) continue;
  const reasons = new Map<string, number>();
  const c = { taken: 0, refused: 0, failed: 0 };
  const s = performance.now();
  let n = 0,
    slow = 0,
    slowInput = "";
  for (; n < Number(process.argv[3] ?? 2000) && performance.now() - s < 20000; n++) {
    const input = t.generate(Random.for(Number(process.argv[4] ?? 1), t.name, n));
    const s1 = performance.now();
    const o = judge(t, input);
    c[o.kind]++;
    const d = performance.now() - s1;
    if (d > slow) {
      slow = d;
      slowInput = new TextDecoder().decode(input).slice(0, 300);
    }
    if (o.kind === "failed") {
      const k = o.reason.slice(0, 260);
      reasons.set(k, (reasons.get(k) ?? 0) + 1);
    }
  }
  console.log(
    t.name,
    n,
    c,
    `${((performance.now() - s) / n).toFixed(3)} ms; slowest ${slow.toFixed(0)}`,
    slow > 200 ? slowInput : "",
  );
  for (const [k, v] of [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 8))
    console.log("   ", v, k);
}
