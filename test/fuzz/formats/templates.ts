/** Chat templates: Jinja that comes with a model, rendered for a few turns. */
import { ChatTemplate } from "../../../src/engine/chat-template.js";
import { ensure, type Target } from "../target.js";
import { decode, encode, mutatedText, pick } from "../mutate.js";

/** Written after the forms that published templates have. */
const BASES = [
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
  "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}{%- for message in messages %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}{%- endfor %}",
  "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
  "{%- macro turn(role, text) -%}<{{ role }}>{{ text | upper }}</{{ role }}>{%- endmacro -%}{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if m.content is string and not ns.found -%}{%- set ns.found = true -%}{%- endif -%}{{ turn(m.role, m.content) }}{%- endfor -%}{{ tools | tojson if tools else '' }}",
];

const PIECES = [
  "{%", "%}", "{{", "}}", "{#", "#}", "{% for x in range(3) %}", "{% endfor %}", "{% if true %}", "{% endif %}", "{% break %}",
  "{% continue %}", "{% set x = messages %}", "{{ messages | tojson }}", "{{ 1/0 }}", "{{ '' * 3 }}", "{{ messages[-1] }}", " | join(', ')", "[1:2:0]",
  "{{ strftime_now('%d %b %Y') }}", "{{ range(1, 5, 0) }}", "{{ undefined.x.y }}", "{{ namespace() }}", "is defined", "| sort", "| map(attribute='a')",
  "{{ x.__proto__ }}", "{{ messages.constructor }}", "{{ cycler }}", "{{ raise_exception('a\\nb') }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]; // prettier-ignore

const TURNS = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hi {{ there }}" },
  { role: "assistant", content: null },
  { role: "user", content: "" },
];
const TOKENS = { bos_token: "<s>", eos_token: "</s>" };

export const templateTarget: Target = {
  name: "chat template",
  generate(random) {
    let text = pick(random, BASES);
    const changes = 1 + random.below(3);
    for (let i = 0; i < changes; i++) text = mutatedText(text, random, PIECES);
    return encode(text);
  },
  run(input) {
    const template = new ChatTemplate(decode(input), TOKENS);
    ensure(typeof template.render(TURNS) === "string", "rendered to no text");
    template.render(TURNS.slice(1, 2), { tools: [{ type: "function", function: { name: "f" } }] });
  },
};
