/** Conformance of the reference backend in float32: the same code as the truth, with results rounded when stored. */

import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { describeConformance } from "./conformance-suite.js";

describeConformance("reference-f32", () => createReferenceBackend({ realType: "f32" }));
