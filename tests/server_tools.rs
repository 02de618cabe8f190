//! Functions through a chat template that has a place for them, there and back, and the order
//! in which models are told of them.

mod support;

use serde_json::{Value, json};
use support::http::*;

/// Writes functions, calls and results, and wants what Mistral's want of a call's name.
const TEMPLATE: &str = "\
{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}\
{% for m in messages %}\
{% if m.tool_calls %}{% for call in m.tool_calls %}\
{% if call.id is not defined or call.id | length != 9 %}{{ raise_exception('nine letters!') }}{% endif %}\
CALL {{ call.function | tojson }}\n{% endfor %}\
{% elif m.role == 'tool' %}{% if m.tool_call_id is not defined %}{{ raise_exception('of what call?') }}{% endif %}\
GAVE {{ m.content }} TO {{ m.tool_call_id }}\n\
{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}\
{% endfor %}Answer:";

/// One whose keys are in no order, and with numbers, as a client sends it.
const FUNCTION: &str = r#"{"type": "function", "function": {"name": "turn", "description": "It's <it>", "parameters": {"type": "object", "properties": {"way": {"enum": ["left", "up"]}, "by": {"type": "number", "minimum": 0, "multipleOf": 0.5}}, "required": ["way", "by"], "additionalProperties": false}}}"#;

fn function() -> Value {
    serde_json::from_str(FUNCTION).unwrap()
}

fn prompt(at: std::net::SocketAddr, body: &Value) -> String {
    let answer = post(at, "/apply-template", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn a_call_and_its_result_come_back_as_the_template_writes_them() {
    let at = server_of(TEMPLATE, 1, 4, None);
    let question = json!({"role": "user", "content": "Which way?"});
    let ask = json!({"messages": [question], "tools": [function()], "tool_choice": "required",
        "temperature": 0, "max_tokens": 200});
    let told = format!("{FUNCTION}\nuser: Which way?\n");
    assert_eq!(prompt(at, &ask), format!("{told}Answer:"));
    let answer = post(at, "/v1/chat/completions", &ask).json();
    assert_eq!(
        answer["choices"][0]["finish_reason"], "tool_calls",
        "{answer}"
    );
    let message = &answer["choices"][0]["message"];
    let call = &message["tool_calls"][0];
    let arguments = call["function"]["arguments"].as_str().unwrap();
    assert!(arguments.starts_with(r#"{"way":""#), "{arguments}");
    // The client sends back what it has been given.
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "{\"at\": 1}"});
    let again = json!({"messages": [question, message, result], "tools": [function()]});
    let spaced = arguments.replace("\":", "\": ").replace(",\"", ", \"");
    let id = call["id"].as_str().unwrap();
    let expected = format!(
        "{told}CALL {{\"name\": \"turn\", \"arguments\": {spaced}}}\n\
         GAVE {{\"at\": 1}} TO {id}\nAnswer:"
    );
    assert_eq!(prompt(at, &again), expected);
    let mut on = again;
    on["max_tokens"] = json!(2);
    let answer = post(at, "/v1/chat/completions", &on);
    assert_eq!(answer.status, 200, "{}", answer.body);

    // Of a function that wants nothing clients send no arguments.
    let empty = json!({"function": {"name": "turn", "arguments": ""}});
    let messages = json!([question, {"role": "assistant", "tool_calls": [empty]}]);
    let said = prompt(at, &json!({"messages": messages}));
    assert!(
        said.contains(r#"CALL {"name": "turn", "arguments": {}}"#),
        "{said}"
    );

    // ollama's form: arguments are no text, and results name the function. They get names.
    let call = json!({"function": {"name": "turn", "arguments": {"way": "up", "by": 1}}});
    let messages = json!([question, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "turn", "content": "done"}]);
    let said = prompt(at, &json!({"messages": messages, "tools": [function()]}));
    let expected = r#"CALL {"name": "turn", "arguments": {"way": "up", "by": 1}}"#;
    assert!(
        said.contains(&format!("{expected}\nGAVE done TO call00000\n")),
        "{said}"
    );
    let body = json!({"messages": messages, "tools": [function()], "stream": false,
        "options": {"num_predict": 2}});
    assert_eq!(post(at, "/api/chat", &body).status, 200);
    // Some send both names of a function.
    let mut both = messages.clone();
    both[2]["name"] = json!("turn");
    assert_eq!(
        prompt(at, &json!({"messages": both, "tools": [function()]})),
        said
    );
}

#[test]
fn functions_are_called_by_models_whose_template_has_no_place_for_them() {
    let at = server(1, 4, None);
    let question = json!({"role": "user", "content": format!("{FACT} {QUESTION}")});
    let body = json!({"messages": [question], "tools": [safe()], "tool_choice": "required",
        "temperature": 0, "max_tokens": 80});
    let answer = post(at, "/v1/chat/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert!(choice["message"]["content"].is_null());
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "open_safe");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert!(arguments["code"].is_i64());

    // The same, streamed.
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let lines = post(at, "/v1/chat/completions", &streamed).body;
    let events = lines.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events
        .filter_map(|e| serde_json::from_str(e).ok())
        .collect();
    let calls: Vec<&Value> = events
        .iter()
        .map(|e| &e["choices"][0]["delta"]["tool_calls"])
        .filter(|calls| calls.is_array())
        .collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0][0]["function"]["name"], "open_safe");
    assert_eq!(calls[0][0]["index"], 0);
    let shown = |e: &&Value| e["choices"][0]["delta"]["content"].is_string();
    assert_eq!(events.iter().filter(shown).count(), 0);
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");

    // The conversation goes on with what the function gave.
    let result = json!({"role": "tool", "tool_call_id": call["id"], "content": "opened"});
    let messages = json!([question, choice["message"], result]);
    let body = json!({"messages": messages, "tools": [safe()], "max_tokens": 4});
    let answer = post(at, "/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let call = json!({"function": {"name": "open_safe", "arguments": {"code": 1}}});
    let messages = json!([question, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "open_safe", "content": "opened"}]);
    let body = json!({"messages": messages, "tools": [safe()], "stream": false,
        "options": {"num_predict": 4}});
    let answer = post(at, "/api/chat", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.json()["message"]["content"].is_string());
}

/// Of a call that was cut off nobody may think that it is whole: a file would be written half.
#[test]
fn a_call_that_is_cut_off_is_none() {
    let at = server(1, 4, None);
    let call = "<tool_call>\n<function=open_safe>\n<parameter=code>\n123456789\n</parameter>\n</function>\n</tool_call>";
    let grammar = format!("root ::= {}", json!(call));
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let mut flat = safe()["function"].clone();
    flat["type"] = json!("function");
    let chat = json!({"messages": messages, "tools": [safe()], "grammar": grammar});
    let responses = json!({"input": QUESTION, "tools": [flat], "grammar": grammar});
    let n = post(at, "/tokenize", &json!({"content": call})).json()["tokens"].clone();
    let n = n.as_array().unwrap().len();

    let whole = post(at, "/v1/chat/completions", &chat).json();
    assert_eq!(
        whole["choices"][0]["finish_reason"], "tool_calls",
        "{whole}"
    );
    let cut = [n / 2, n * 2 / 3];
    for max in cut {
        let mut body = chat.clone();
        body["max_tokens"] = json!(max);
        let answer = post(at, "/v1/chat/completions", &body).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "length", "{answer}");
        assert!(choice["message"]["tool_calls"].is_null(), "{answer}");
        let said = choice["message"]["content"].as_str().unwrap();
        assert!(call.starts_with(said) && !said.is_empty(), "{answer}");
        body["stream"] = json!(true);
        let events = data(&post(at, "/v1/chat/completions", &body));
        let last = &events.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], "length");
        let called = |e: &&Value| e["choices"][0]["delta"]["tool_calls"].is_array();
        assert_eq!(events.iter().filter(called).count(), 0);

        let mut body = responses.clone();
        body["max_output_tokens"] = json!(max);
        let answer = post(at, "/v1/responses", &body).json();
        assert_eq!(answer["status"], "incomplete", "{answer}");
        let kinds: Vec<&Value> = answer["output"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| &o["type"])
            .collect();
        assert_eq!(kinds, ["message"], "{answer}");
    }
    // One that was whole before stays, and the answer is cut off all the same.
    let mut body = chat;
    body["grammar"] = json!(format!("root ::= {} [a-z]{{1000}}", json!(call)));
    body["max_tokens"] = json!(call.len() + 10);
    let answer = post(at, "/v1/chat/completions", &body).json();
    let choice = &answer["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array();
    assert_eq!(calls.map(Vec::len), Some(1), "{answer}");
    assert_eq!(choice["finish_reason"], "length", "{answer}");
}

/// What an assistant thought, by the names that clients have for it.
#[test]
fn thoughts_reach_a_template() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}|{{ m.thinking }}|\
                    {{ m.content }}\n{% endfor %}";
    let at = server_of(template, 1, 4, None);
    for names in [
        &["reasoning_content"][..],
        &["reasoning", "reasoning_content"],
        &["thinking"],
    ] {
        let mut said = json!({"role": "assistant", "content": "up"});
        names.iter().for_each(|name| said[name] = json!("hm"));
        let question = json!({"role": "user", "content": "Which way?", "reasoning": null});
        let body = json!({"messages": [question, said, question]});
        let user = "user: ||Which way?\n";
        assert_eq!(
            prompt(at, &body),
            format!("{user}assistant: hm|hm|up\n{user}")
        );
    }
}

/// How much to think is a matter of the template.
#[test]
fn effort_reaches_a_template() {
    let template = "effort {{ reasoning_effort }}{% if reasoning_effort == 'none' %}\
                    {{ raise_exception('think!') }}{% endif %}{{ messages[0].content }}";
    let at = server_of(template, 1, 4, None);
    let user = json!([{"role": "user", "content": " hi"}]);
    let body = json!({"messages": user, "reasoning_effort": "low"});
    assert_eq!(prompt(at, &body), "effort low hi");
    let none = json!({"messages": user, "reasoning_effort": "none"});
    assert_eq!(post(at, "/v1/chat/completions", &none).status, 400);
    let ask = |effort: &str| {
        json!({"input": "hi", "reasoning": {"effort": effort, "summary": "auto"},
            "max_output_tokens": 4})
    };
    let answer = post(at, "/v1/responses", &ask("high"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["reasoning"]["effort"], "high");
    assert_eq!(post(at, "/v1/responses", &ask("none")).status, 400);
    for (summary, status) in [("detailed", 200), ("concise", 200), ("long", 400)] {
        let mut body = ask("low");
        body["reasoning"]["summary"] = json!(summary);
        assert_eq!(post(at, "/v1/responses", &body).status, status, "{summary}");
    }
}

/// Generated text has thoughts in it, and clients send it back as it was.
#[test]
fn thoughts_in_a_text_have_a_place_in_templates_of_channels() {
    let template = "{% if tools %}{% endif %}{% for m in messages %}\
                    {{ m.role }}<|channel|>{{ m.thinking }}|{{ m.content }}\n{% endfor %}";
    let at = server_of(template, 1, 4, None);
    let text = "<think>\nhm\n</think>\n\nup";
    let user = json!({"role": "user", "content": text});
    let said = json!({"role": "assistant", "content": text});
    let expected = format!("user<|channel|>|{text}\nassistant<|channel|>hm|up\n");
    assert_eq!(prompt(at, &json!({"messages": [user, said]})), expected);
    let call = json!([{"function": {"name": "turn", "arguments": "{}"}}]);
    let said = json!({"role": "assistant", "content": text, "tool_calls": call});
    let expected = format!("user<|channel|>|{text}\nassistant<|channel|>|up\n");
    assert_eq!(prompt(at, &json!({"messages": [user, said]})), expected);
}

/// llama.cpp knows this template without running it, but not what is said of functions.
#[test]
fn functions_are_not_lost_where_a_template_fails() {
    let template = "{% if tools %}{{ no_such_filter | of_ours }}{% endif %}\
                    {% for m in messages %}{{ m.missing() }}<|im_start|>{% endfor %}";
    let at = server_of(template, 1, 4, None);
    let question = json!({"role": "user", "content": "Which way?"});
    assert_eq!(
        prompt(at, &json!({"messages": [question]})),
        "<|im_start|>user\nWhich way?<|im_end|>\n<|im_start|>assistant\n"
    );
    let call = json!({"function": {"name": "turn", "arguments": {}}});
    for body in [
        json!({"messages": [question], "tools": [function()]}),
        json!({"messages": [question, {"role": "assistant", "tool_calls": [call]}]}),
        json!({"messages": [question], "chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        for path in ["/apply-template", "/v1/chat/completions"] {
            let answer = post(at, path, &body);
            assert_eq!(answer.status, 400, "{body}");
            assert!(answer.body.contains("chat template"), "{}", answer.body);
        }
    }
}

/// What comes first in a schema is written first: reasons before what follows from them.
#[test]
fn answers_keep_the_order_of_their_schema() {
    let at = server(1, 4, None);
    let schema: Value = serde_json::from_str(
        r#"{"type": "object", "properties": {"why": {"type": "boolean"}, "answer": {"type": "boolean"}},
            "required": ["why", "answer"], "additionalProperties": false}"#,
    )
    .unwrap();
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
    let body = json!({"messages": conversation(FACT), "response_format": format, "max_tokens": 80});
    let answer = post(at, "/v1/chat/completions", &body).json();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let [why, answer] = ["\"why\"", "\"answer\""].map(|key| text.find(key).unwrap());
    assert!(why < answer, "{text}");
}
