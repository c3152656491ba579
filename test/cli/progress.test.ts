import { beforeEach, describe, expect, it } from "vitest";
import { barLine, LineProgress, ProgressMeter } from "../../src/cli/progress.js";

let now = 0;
const clock = (): number => now;
beforeEach(() => {
  now = 100;
});

describe("ProgressMeter", () => {
  it("knows no rate before the second report", () => {
    const meter = new ProgressMeter("blocks", 4, clock);
    expect(meter.secondsLeft).toBeUndefined();
    expect(meter.describe()).toBe("0/4 (0%)");
  });

  it("extrapolates the latest rate and counts down between reports", () => {
    const meter = new ProgressMeter("blocks", 10, clock);
    for (let i = 0; i < 4; i++) {
      now += 15;
      meter.advance(1, `loss ${i}`);
    }
    expect(meter.secondsLeft).toBeCloseTo(90, 9);
    now += 20;
    expect(meter.secondsLeft).toBeCloseTo(70, 9);
    expect(meter.describe()).toBe("4/10 (40%), 1 min 10 s left, loss 3");
  });

  it("spreads the pauses between stretches of steps over the steps", () => {
    // Blocks of 480 steps of 0.4 s, each after 30 s of preparation.
    const meter = new ProgressMeter("steps", 9600, clock);
    const truth = () => 20 * (480 * 0.4 + 30) - (now - 100);
    const ratios: number[] = [];
    for (let step = 0; step < 9600; step++) {
      now += 0.4 + (step % 480 === 0 ? 30 : 0);
      meter.advance();
      if (step < 19) expect(meter.secondsLeft).toBeUndefined();
      else if (step >= 480 && step < 9000) ratios.push(meter.secondsLeft! / truth());
    }
    expect(Math.min(...ratios)).toBeGreaterThan(0.9);
    expect(Math.max(...ratios)).toBeLessThan(1.25);
  });

  it("does not take what was finished earlier for speed", () => {
    const meter = new ProgressMeter("blocks", 100, clock);
    meter.advance(90);
    now += 30;
    meter.advance();
    expect(meter.secondsLeft).toBeCloseTo(9 * 30, 9);
  });

  it("never passes its total, and rounds percent down", () => {
    const meter = new ProgressMeter("tensors", 1000, clock);
    meter.advance(999);
    expect(meter.describe()).toContain("(99%)");
    meter.advance(5);
    expect(meter.describe()).toBe("1,000/1,000 (100%)");
    expect(new ProgressMeter("empty", 0, clock).fraction).toBe(1);
  });

  it("draws a bar", () => {
    const meter = new ProgressMeter("blocks", 4, clock);
    meter.advance(3);
    expect(barLine(meter)).toBe("blocks [==================------] 3/4 (75%)");
  });

  it("leaves out what does not fit, and never the percentage", () => {
    const meter = new ProgressMeter("calibrating", 3840, clock);
    for (let i = 0; i < 192; i++) {
      now += 15;
      meter.advance(10, "block 3, loss 0.00123");
    }
    const whole = "1,920/3,840 (50%), 48 min 00 s left, block 3, loss 0.00123";
    expect(barLine(meter)).toBe(`calibrating [============------------] ${whole}`);
    expect(barLine(meter, 80)).toBe(`calibrating [===----] ${whole}`);
    expect(barLine(meter, 60)).toBe("calibrating [=====-----] 1,920/3,840 (50%), 48 min 00 s left");
    for (let width = 0; width <= 120; width++) {
      const line = barLine(meter, width);
      expect(Array.from(line).length).toBeLessThanOrEqual(width);
      if (width >= 3) expect(line).toContain("50%");
      if (width >= 60) expect(line).toMatch(/^calibrating \[=+-+\] 1,920.* left/);
    }
    expect(barLine(meter, 20)).toBe("calibrating 50%");
    expect(barLine(meter, 10)).toBe("calib… 50%");
  });
});

describe("LineProgress", () => {
  const lines: string[] = [];
  const progress = new LineProgress((line) => lines.push(line), clock);
  beforeEach(() => {
    lines.length = 0;
  });

  it("writes a line for every tenth, not for every report", () => {
    const task = progress.task("windows", 100);
    for (let i = 0; i < 100; i++) {
      now += 0.2;
      task.advance();
    }
    task.done();
    task.done();
    expect(lines[0]).toBe("windows …");
    expect(lines[1]).toBe("windows: 10/100 (10%), 18 s left");
    expect(lines).toHaveLength(1 + 9 + 1);
    expect(lines.at(-1)).toBe("windows: done in 20 s");
  });

  it("writes at least every ten seconds when work is slow", () => {
    const task = progress.task("blocks", 1000);
    for (let i = 0; i < 5; i++) {
      now += 12;
      task.advance();
    }
    expect(lines).toHaveLength(1 + 5);
    expect(lines[5]).toBe("blocks: 5/1,000 (0%), 3 h 19 min left");
    task.done();
    expect(lines[6]).toBe("blocks: ended at 5/1,000 (0%), 3 h 19 min left, after 1 min 00 s");
  });

  it("does not flood the log with tasks of a moment", () => {
    const task = progress.task("header", 10);
    for (let i = 0; i < 10; i++) {
      now += 0.01;
      task.advance();
    }
    task.done();
    expect(lines).toEqual(["header …"]);
  });
});
