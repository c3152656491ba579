/** Errors in the shape that OpenAI's API has, which its clients turn into exceptions. */
import type { EngineErrorCode } from "../engine/request.js";
import { EngineError } from "../engine/request.js";

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

export class ApiError extends Error {
  override readonly name = "ApiError";
  constructor(
    readonly status: number,
    message: string,
    readonly details: { readonly code?: string; readonly param?: string } = {},
  ) {
    super(message);
  }
}

const STATUS_OF: Readonly<Record<EngineErrorCode, number>> = {
  invalid: 400,
  context: 400,
  busy: 503,
  closed: 503,
  failed: 500,
};

const CODE_OF: Readonly<Partial<Record<EngineErrorCode, string>>> = {
  context: "context_length_exceeded",
  busy: "overloaded",
  closed: "shutting_down",
};

/** What went wrong, as a status and a body. Unknown errors keep their message to themselves. */
export function describeError(error: unknown): { status: number; body: ErrorBody } {
  if (error instanceof ApiError)
    return of(error.status, error.message, error.details.code, error.details.param);
  if (error instanceof EngineError) return ofEngine(error);
  const { statusCode, message, code } = httpError(error);
  if (statusCode !== undefined && statusCode < 500) return of(statusCode, message, code);
  return of(500, "the server failed to do this; its log says why");
}

/** The engine names settings as the library spells them; clients of the API spell them otherwise. */
const SPELLED: Readonly<Record<string, string>> = {
  ignoreEnd: "ignore_eos",
  constraint: "response_format",
  continueFinal: "continue_final_message",
};

function ofEngine({ code, message }: EngineError) {
  const [, name, path, reason] = /^([a-z][A-Za-z]*)((?:\.[\w-]+)*): (.*)$/s.exec(message) ?? [];
  if (code !== "invalid" || name === undefined || name === "request")
    return of(STATUS_OF[code], message, CODE_OF[code]);
  const snake = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const param = `${SPELLED[name] ?? snake}${path}`;
  return of(STATUS_OF[code], `${param}: ${reason}`, CODE_OF[code], param);
}

function of(status: number, message: string, code?: string, param?: string) {
  return {
    status,
    body: { error: { message, type: typeOf(status), param: param ?? null, code: code ?? null } },
  };
}

function typeOf(status: number): string {
  if (status === 401) return "authentication_error";
  if (status === 403) return "permission_error";
  if (status === 404) return "not_found_error";
  if (status === 429) return "rate_limit_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

/** Fastify's own errors carry a status; their codes are turned into words. */
function httpError(error: unknown): { statusCode?: number; message: string; code?: string } {
  if (!(error instanceof Error)) return { message: String(error) };
  const { statusCode, code } = error as Error & { statusCode?: number; code?: string };
  switch (code) {
    case "FST_ERR_CTP_BODY_TOO_LARGE":
      return { statusCode, message: "the request's body is too large", code: "body_too_large" };
    case "FST_ERR_BAD_URL":
      return { statusCode: 400, message: "the URL is malformed", code: "bad_url" };
    case "FST_ERR_MAX_PARAM_LENGTH":
      return { statusCode: 414, message: "a part of the URL is too long", code: "url_too_long" };
    case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
      return { statusCode, message: "send the body as application/json", code: "media_type" };
    case "FST_BEARER_AUTH_MISSING_AUTHORIZATION_HEADER":
    case "FST_BEARER_AUTH_INVALID_AUTHORIZATION_HEADER":
      return {
        statusCode,
        message: "a valid API key is needed: send it as Authorization: Bearer KEY",
        code: "invalid_api_key",
      };
    default:
      return { statusCode, message: error.message };
  }
}

/** What Node's parser refuses before there is a request: the status line and body to send on the bare socket. */
export function describeParserError(code: string | undefined): string {
  const [status, reason, message] =
    code === "HPE_HEADER_OVERFLOW"
      ? [431, "Request Header Fields Too Large", "the request's headers are too large"]
      : code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? [408, "Request Timeout", "the request did not come in time"]
        : ([400, "Bad Request", "the request is not well-formed HTTP"] as const);
  const body = JSON.stringify(of(status, message).body);
  return (
    `HTTP/1.1 ${status} ${reason}\r\nContent-Type: application/json; charset=utf-8\r\n` +
    `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`
  );
}
