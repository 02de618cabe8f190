//! From a protocol's parameters to a request, and its events.

use crate::engine::{Event, Refused, Request, Summary};
use crate::fault::{Fault, Protocol};
use crate::thoughts::Thoughts;
use crate::tools::Tools;
use crate::{BODY, Shared};
use axum::body::{Body, Bytes};
use axum::extract::FromRequest;
use axum::http::{self, StatusCode};
use axum::response::Response;
use kiv_runtime::{Chosen, GenerateOptions, Grammar, Message, Sampling, Token};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::pin::Pin;
use std::time::Duration;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::mpsc::unbounded_channel;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};

/// Time that a body may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most tokens that an answer may be asked to have.
pub(crate) const MOST: i64 = 1_000_000_000;

/// A body, refused in its protocol's form where it is too large or too slow.
pub(crate) struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Response;

    async fn from_request(request: http::Request<Body>, state: &S) -> Result<Self, Response> {
        let protocol = Protocol::of(request.uri().path());
        let too_large = || {
            let why = format!("the body is larger than {BODY} bytes");
            Fault::new(StatusCode::PAYLOAD_TOO_LARGE, why)
        };
        // Not read only to be refused.
        let length = request.headers().get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY) {
            return Err(too_large().answer(protocol));
        }
        let body = tokio::time::timeout(PATIENCE, Bytes::from_request(request, state)).await;
        let fault = match body {
            Ok(Ok(bytes)) => return Ok(Self(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                too_large()
            }
            Ok(Err(rejection)) => Fault::new(rejection.status(), rejection.body_text()),
            Err(_) => Fault::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        Err(fault.answer(protocol))
    }
}

/// Parameters of a request: a JSON object of which parts are taken one by one.
pub(crate) struct Params(Map<String, Value>);

impl Params {
    /// Of a body.
    pub fn parse(body: &[u8]) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new(StatusCode::BAD_REQUEST, why);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(bad("the body must be a JSON object".to_owned())),
            Err(error) => Err(bad(format!("the body is no JSON: {error}"))),
        }
    }

    /// Of a part of it; empty if it is not there.
    pub fn within(&mut self, name: &'static str) -> Result<Self, Fault> {
        Ok(Self(self.take(name)?.unwrap_or_default()))
    }

    /// One of them as it was sent, which stays.
    pub fn look(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Puts one in another form.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// One of them, `None` if it is missing or null.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, Fault> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let mut shown = value.to_string();
                if let Some((end, _)) = shown.char_indices().nth(60) {
                    shown.truncate(end);
                    shown.push('…');
                }
                serde_json::from_value(value).map(Some).map_err(|error| {
                    Fault::param(name, format!("{name} cannot be {shown}: {error}"))
                })
            }
        }
    }

    /// One that must be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, Fault> {
        self.take(name)?
            .ok_or_else(|| Fault::param(name, format!("{name} is missing")))
    }

    /// A number within limits.
    pub fn number(
        &mut self,
        name: &'static str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, Fault> {
        let value: Option<f64> = self.take(name)?;
        if let Some(value) = value.filter(|v| !(least..=most).contains(v)) {
            let why = format!("{name} must be {least} to {most}, not {value}");
            return Err(Fault::param(name, why));
        }
        Ok(value)
    }

    /// A whole number within limits.
    pub fn whole(
        &mut self,
        name: &'static str,
        least: i64,
        most: i64,
    ) -> Result<Option<i64>, Fault> {
        let value = self.number(name, least as f64, most as f64)?;
        if let Some(value) = value.filter(|v| v.fract() != 0.0) {
            let why = format!("{name} must be a whole number, not {value}");
            return Err(Fault::param(name, why));
        }
        Ok(value.map(|value| value as i64))
    }

    /// Refuses what is there and means something that kiv has not.
    pub fn refuse(&self, name: &'static str, harmless: &[Value]) -> Result<(), Fault> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if harmless.contains(value) => Ok(()),
            Some(_) => Err(Fault::param(name, format!("{name} is not supported"))),
        }
    }
}

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// The parameter `prompt`: a text, alone or in a list, or the numbers of its tokens.
pub(crate) fn prompt(app: &Shared, params: &mut Params) -> Result<Vec<Token>, Fault> {
    let tokens = match params.need("prompt")? {
        Value::String(text) => Some(tokens(app, &text, true)),
        Value::Array(all) => match &all[..] {
            [Value::String(text)] => Some(tokens(app, text, true)),
            [Value::Array(all)] => known(app, all),
            all => known(app, all),
        },
        _ => None,
    };
    tokens.ok_or_else(|| {
        let most = app.model.n_vocab() - 1;
        let why = format!("prompt must be one text, or a list of tokens from 0 to {most}");
        Fault::param("prompt", why)
    })
}

/// Tokens by their numbers, if the vocabulary has all of them.
pub(crate) fn known(app: &Shared, all: &[Value]) -> Option<Vec<Token>> {
    let n = app.model.n_vocab() as u64;
    let token = |value: &Value| value.as_u64().filter(|token| *token < n);
    let tokens = all.iter().map(token);
    tokens.map(|token| Some(token? as Token)).collect()
}

/// A grammar that llama.cpp takes.
pub(crate) fn checked(
    app: &Shared,
    grammar: Option<Grammar>,
    param: &'static str,
) -> Result<Option<Grammar>, Fault> {
    let Some(grammar) = grammar else {
        return Ok(None);
    };
    let checked = beside(|| grammar.checked(&app.model));
    let checked = checked.map_err(|error| Fault::param(param, format!("{param}: {error}")))?;
    Ok(Some(checked))
}

/// Tokens of a text, which may be a whole book.
pub(crate) fn tokens(app: &Shared, text: &str, start: bool) -> Vec<Token> {
    beside(|| app.model.tokenize(text, start))
}

/// Does what takes long while others go on answering, where there are others.
fn beside<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match runtime {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// llama-server's `grammar` and `json_schema`.
pub(crate) fn grammar(app: &Shared, params: &mut Params) -> Result<Option<Grammar>, Fault> {
    let gbnf: Option<String> = params.take("grammar")?;
    let gbnf = gbnf.filter(|text| !text.is_empty()).map(Grammar::Gbnf);
    let schema: Option<Map<String, Value>> = params.take("json_schema")?;
    let schema = schema.filter(|schema| !schema.is_empty());
    let schema = schema.map(|schema| Grammar::JsonSchema(Value::Object(schema).to_string()));
    match (gbnf, schema) {
        (Some(_), Some(_)) => {
            let why = "grammar and json_schema cannot be given together";
            Err(Fault::param("grammar", why))
        }
        (gbnf, None) => checked(app, gbnf, "grammar"),
        (None, schema) => checked(app, schema, "json_schema"),
    }
}

/// What else a template is told: `chat_template_kwargs`, as llama-server has them, and
/// OpenAI's `reasoning_effort`.
pub(crate) fn template_variables(params: &mut Params) -> Result<Map<String, Value>, Fault> {
    let mut all: Map<_, _> = params.take("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = params.take::<String>("reasoning_effort")? {
        all.entry("reasoning_effort").or_insert(effort.into());
    }
    Ok(all)
}

/// How an answer to a prompt is divided, by llama-server's `reasoning_format`.
pub(crate) fn thoughts(
    params: &mut Params,
    prompt: &str,
    grammar: Option<&Grammar>,
) -> Result<Thoughts, Fault> {
    match params.take::<String>("reasoning_format")?.as_deref() {
        None | Some("auto" | "deepseek") => Ok(Thoughts::after(prompt, grammar.is_some())),
        // Thoughts stay where they are.
        Some("none") => Ok(Thoughts::default()),
        Some(other) => {
            let why = format!("reasoning_format must be auto, deepseek or none, not {other:?}");
            Err(Fault::param("reasoning_format", why))
        }
    }
}

/// A conversation, in which functions may be called, as the model's text.
pub(crate) fn render(
    app: &Shared,
    messages: Vec<Message>,
    tools: &Tools,
    mut variables: Map<String, Value>,
) -> Result<String, Fault> {
    let Some(template) = &app.config.template else {
        let why = "the model carries no chat template: start with --chat-template, or send a plain prompt";
        return Err(Fault::param("messages", why));
    };
    let (messages, tools) = tools.prepare(template, messages);
    if !tools.is_null() {
        variables.insert("tools".to_owned(), tools);
    }
    let text = template.apply_with(&app.model, &messages, &variables);
    text.map_err(|error| {
        Fault::param(
            "messages",
            format!("the chat template does not take these messages: {error}"),
        )
    })
}

/// Samplers that kiv has not, of OpenAI, ollama and llama-server, and with which value each
/// changes nothing.
const NO_SAMPLERS: [(&str, &[f64]); 12] = [
    ("presence_penalty", &[0.0]),
    ("frequency_penalty", &[0.0]),
    ("repeat_penalty", &[1.0]),
    ("repetition_penalty", &[1.0]),
    ("dry_multiplier", &[0.0]),
    ("xtc_probability", &[0.0]),
    ("dynatemp_range", &[0.0]),
    ("mirostat", &[0.0]),
    ("typical_p", &[1.0]),
    ("tfs_z", &[1.0]),
    ("top_n_sigma", &[-1.0, 0.0]),
    ("min_keep", &[0.0, 1.0]),
];

/// Samplers that kiv has, in its order, with their letters in llama-server's older form.
const SAMPLERS: [(&str, char); 4] = [
    ("top_k", 'k'),
    ("top_p", 'p'),
    ("min_p", 'm'),
    ("temperature", 't'),
];

/// Refuses llama-server's `samplers` in another order than kiv's, or without some. Others
/// may be among them: they are told by their parameters.
fn check_samplers(params: &mut Params) -> Result<(), Fault> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Samplers {
        Letters(String),
        Names(Vec<String>),
    }
    let Some(shown) = params.look("samplers").map(Value::to_string) else {
        return Ok(());
    };
    let place = |is: &dyn Fn(&(&str, char)) -> bool| SAMPLERS.iter().position(is);
    let order: Vec<usize> = match params.need("samplers")? {
        Samplers::Letters(all) => all
            .chars()
            .filter_map(|letter| place(&|(_, own)| *own == letter))
            .collect(),
        Samplers::Names(all) => all
            .iter()
            .filter_map(|name| place(&|(own, _)| own == name))
            .collect(),
    };
    if order.iter().copied().eq(0..SAMPLERS.len()) {
        return Ok(());
    }
    let names = SAMPLERS.map(|(name, _)| name).join(", ");
    let why = format!("samplers must be {names} in this order, others beside them, not {shown}");
    Err(Fault::param("samplers", why))
}

/// Sampling, with the names that all protocols share.
pub(crate) fn sampling(params: &mut Params, temperature: f64) -> Result<Sampling, Fault> {
    for (name, off) in NO_SAMPLERS {
        let harmless = |v: &Value| v.as_f64().is_some_and(|v| off.contains(&v));
        if let Some(value) = params.look(name).filter(|v| !harmless(v)) {
            let why = format!("{name} is not supported: only {}, not {value}", off[0]);
            return Err(Fault::param(name, why));
        }
    }
    check_samplers(params)?;
    let usual = Sampling::default();
    let seed: Option<i128> = params.take("seed")?;
    let seed = seed.and_then(folded).unwrap_or_else(any_seed);
    let real = |value: Option<f64>, usual: f32| value.map_or(usual, |v| v as f32);
    Ok(Sampling {
        temperature: params
            .number("temperature", 0.0, 100.0)?
            .unwrap_or(temperature) as f32,
        top_k: params
            .whole("top_k", i64::from(i32::MIN), 1_000_000)?
            .map_or(usual.top_k, |k| k.max(0) as i32),
        top_p: real(params.number("top_p", 0.0, 1.0)?, usual.top_p),
        min_p: real(params.number("min_p", 0.0, 1.0)?, usual.min_p),
        seed,
    })
}

/// A seed of any size in the bits that the sampler takes; `None` is any, which is -1 and, as
/// 32 bits, what llama.cpp has for it.
fn folded(seed: i128) -> Option<u32> {
    const ANY: i128 = u32::MAX as i128;
    if matches!(seed, -1 | ANY) {
        return None;
    }
    let bits = seed as u64;
    Some(((bits ^ (bits >> 32)) as u32).min(u32::MAX - 1))
}

fn any_seed() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.subsec_nanos())
}

/// Texts that end an answer.
pub(crate) fn stops(params: &mut Params) -> Result<Vec<String>, Fault> {
    let stops: Option<Texts> = params.take("stop")?;
    let stops = stops.map(Texts::into_vec).unwrap_or_default();
    if stops.len() > 16 {
        return Err(Fault::param(
            "stop",
            format!("stop may hold 16 texts, not {}", stops.len()),
        ));
    }
    Ok(stops)
}

/// Hands a prompt to the engine.
pub(crate) fn submit(
    app: &Shared,
    prompt: Vec<Token>,
    mut options: GenerateOptions,
    param: &'static str,
    retrieved: bool,
) -> Result<Events, Fault> {
    if prompt.is_empty() {
        return Err(Fault::param(param, format!("{param} has no text in it")));
    }
    let most = app.config.n_ctx;
    if prompt.len() >= most {
        let why = format!(
            "{param} has {} tokens, which does not fit the context of {most}",
            prompt.len()
        );
        return Err(Fault::param(param, why));
    }
    if let Some(room) = app.engine.room()
        && let Some(bytes) = room.lacks(prompt.len())
    {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let why = format!(
            "{param} has {} tokens, for which {:.1} GiB of memory are needed, and {:.1} are there: send \
             less, or start with --kv-store q4_0, or with --kv-dir and --kv-host-limit",
            prompt.len(),
            gib(bytes),
            gib(room.bytes)
        );
        return Err(Fault::param(param, why));
    }
    // An answer of a form ends with it, whatever space is in it.
    if options.grammar.is_none() {
        options.stop.extend(app.config.stop.iter().cloned());
    }
    let (events, receiver) = unbounded_channel();
    let request = Request {
        prompt,
        options,
        retrieved,
        events,
    };
    app.engine
        .submit(request)
        .map_err(|refused| match refused {
            Refused::Full => {
                let why = "too many requests wait: try again in some seconds";
                Fault::new(StatusCode::SERVICE_UNAVAILABLE, why)
            }
            Refused::Ended => ended(),
        })?;
    let mut is_over = false;
    let events = UnboundedReceiverStream::new(receiver).map(Some);
    let events = events.chain(tokio_stream::once(None));
    Ok(Box::pin(events.filter_map(move |event| match event {
        Some(event) => {
            is_over |= matches!(event, Event::Done(_) | Event::Failed(_));
            Some(event)
        }
        None if is_over => None,
        // Without it a client would take what it has for the whole answer.
        None => Some(Event::Failed("the server has stopped".to_owned())),
    })))
}

/// What becomes of a request; [`Event::Done`] or [`Event::Failed`] comes last.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Nothing will be answered any more.
pub(crate) fn ended() -> Fault {
    let why = "the server has a fault and answers nothing any more: start it again";
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, why)
}

/// All of an answer.
pub(crate) struct Whole {
    pub text: String,
    /// Its tokens, if it was asked how likely they were.
    pub chosen: Vec<Chosen>,
    pub summary: Summary,
}

/// Waits for all of an answer.
pub(crate) async fn collect(mut events: Events) -> Result<Whole, Fault> {
    let mut whole = String::new();
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Reading { .. } => {}
            Event::Text { text, chosen } => {
                whole += &text;
                all.extend(chosen);
            }
            Event::Done(summary) => {
                return Ok(Whole {
                    text: whole,
                    chosen: all,
                    summary,
                });
            }
            Event::Failed(why) => return Err(Fault::failed(why)),
        }
    }
    Err(ended())
}

/// Checks that a request is for the model that is here.
pub(crate) fn check_model(app: &Shared, name: Option<&str>) -> Result<(), Fault> {
    let own = app.config.name.as_str();
    match name {
        None | Some("") => Ok(()),
        Some(name) if untagged(name) == untagged(own) => Ok(()),
        Some(name) => Err(Fault {
            param: Some("model"),
            ..Fault::new(
                StatusCode::NOT_FOUND,
                format!("there is no model {name:?} here, only {own:?}"),
            )
        }),
    }
}

/// A name without the tag that ollama's names have if they have no other.
fn untagged(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn seeds_of_every_size() {
        let of = |seed: Value| {
            let mut params = Params(Map::from_iter([("seed".to_owned(), seed)]));
            sampling(&mut params, 1.0).map(|sampling| sampling.seed)
        };
        for seed in [0, 7, u32::MAX - 1] {
            assert_eq!(of(json!(seed)).unwrap(), seed);
        }
        for seed in [
            json!(-2),
            json!(i64::MIN),
            json!(1_u64 << 63),
            json!(u64::MAX - 1),
        ] {
            let first = of(seed.clone()).unwrap();
            assert_ne!(first, u32::MAX);
            assert_eq!(of(seed).unwrap(), first);
        }
        assert_ne!(
            of(json!(1_u64 << 63)).unwrap(),
            of(json!(1_u64 << 62)).unwrap()
        );
        for seed in [-1, i64::from(u32::MAX)] {
            assert_eq!(folded(i128::from(seed)), None);
            assert_ne!(of(json!(seed)).unwrap(), u32::MAX);
        }
        for seed in [json!(0.5), json!("7"), json!(1e30)] {
            assert!(of(seed).is_err());
        }
    }

    #[test]
    fn no_best_tokens_are_all_tokens() {
        for (k, expected) in [(-1, 0), (-7, 0), (0, 0), (3, 3)] {
            let mut params = Params(Map::from_iter([("top_k".to_owned(), json!(k))]));
            assert_eq!(sampling(&mut params, 1.0).unwrap().top_k, expected);
        }
    }
}
