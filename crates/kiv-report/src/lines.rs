//! Reading what `kiv eval` wrote.

use crate::ReportError;
use serde::Deserialize;
use serde_json::Value;

/// The conditions of a run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Header {
    pub kiv_version: Option<String>,
    pub model_arch: Option<String>,
    pub model_name: Option<String>,
    pub model_file: Option<String>,
    pub model_type: Option<String>,
    pub model_params: Option<u64>,
    pub model_bytes: Option<u64>,
    pub model_sha256: Option<String>,
    pub cpu: Option<String>,
    pub os: Option<String>,
    pub threads: Option<u64>,
    pub threads_batch: Option<u64>,
    pub gpu_layers: Option<u64>,
    pub ctx_size: Option<u64>,
    pub ubatch: Option<u64>,
    pub cache_type_k: Option<String>,
    pub cache_type_v: Option<String>,
    pub rope_scaling: Option<String>,
    pub rope_freq_base: Option<f64>,
    pub rope_freq_scale: Option<f64>,
    pub kv_pos: Option<String>,
    pub kv_rest: Option<bool>,
    pub kv_store_k: Option<String>,
    pub kv_store_v: Option<String>,
    pub kv_window: Option<u64>,
    pub kv_block: Option<u64>,
    /// Policy that read each context for all that can take over from it.
    pub kv_read_policy: Option<String>,
    pub kv_sinks: Option<u64>,
    pub samples: Option<u64>,
    pub seed: Option<u64>,
}

impl Header {
    /// Types of K and V outside the device, where they are not the cache's.
    pub fn store(&self) -> Option<[&str; 2]> {
        let (k, v) = (self.kv_store_k.as_deref()?, self.kv_store_v.as_deref()?);
        let of_cache = (self.cache_type_k.as_deref(), self.cache_type_v.as_deref());
        ((Some(k), Some(v)) != of_cache).then_some([k, v])
    }

    /// Whether far tokens were seen at other positions than their own.
    pub fn is_remapped(&self) -> bool {
        self.kv_pos.as_deref().is_some_and(|pos| pos != "absolute")
    }

    /// Whether something stood for what found no slot. Nothing said so before it could be
    /// turned off.
    pub fn has_rest(&self) -> bool {
        self.kv_rest != Some(false)
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    Answer {
        pass: bool,
        /// As much of what was answered as the right answer is long.
        said: Option<String>,
    },
    Recall(Recall),
    Divergence(Divergence),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Recall {
    pub mass_mean: f64,
    pub mass_p5: f64,
    pub mass_worst: f64,
    pub topk: f64,
    /// `[layer][head]`.
    #[serde(default)]
    pub mass_by_head: Vec<Vec<f64>>,
    #[serde(default)]
    pub queries: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Divergence {
    pub kld_mean: f64,
    #[serde(default)]
    pub kld_max: f64,
    pub same_top1: f64,
    #[serde(default)]
    pub tokens: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Case {
    task: String,
    policy: String,
    n_ctx: u64,
    #[serde(default)]
    kv_budget: Option<u64>,
    #[serde(default)]
    prompt: u64,
    #[serde(default)]
    question: u64,
    #[serde(default)]
    depth: Option<f64>,
    #[serde(default)]
    entries: Option<u64>,
    #[serde(default)]
    records: Option<u64>,
    #[serde(default)]
    hops: Option<u64>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    case: Option<String>,
    #[serde(default)]
    read_by: Option<String>,
    #[serde(default)]
    expected: Option<Value>,
    #[serde(default)]
    got: Option<String>,
}

impl Case {
    /// What is asked, whoever is asked.
    fn question(&self) -> String {
        format!(
            "{} {} {} {} {:?} {:?} {:?} {:?} {:?} {:?}",
            self.task,
            self.n_ctx,
            self.prompt,
            self.question,
            self.depth,
            self.entries,
            self.records,
            self.hops,
            self.seed,
            self.expected,
        )
    }

    fn said(&self) -> Option<String> {
        let length = self.expected.as_ref()?.as_str()?.chars().count();
        let got = self.got.as_ref()?.trim_start();
        Some(got.chars().take(length).collect())
    }
}

/// One result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub task: String,
    pub policy: String,
    /// `None` for `full`.
    pub budget: Option<u64>,
    pub n_ctx: u64,
    pub depth: Option<f64>,
    pub entries: Option<u64>,
    pub records: Option<u64>,
    pub hops: Option<u64>,
    /// The policy under which the context was read, if that is another's.
    pub read_by: Option<String>,
    /// The same for lines about the same question to the same contender.
    pub key: String,
    /// The same for lines about the same question.
    pub question: String,
    pub found: Found,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Line {
    Header(Box<Header>),
    Record(Box<Record>),
}

/// All lines of a file; summaries are left out, because they follow from the
/// records.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Line>, ReportError> {
    let mut lines = Vec::new();
    for (index, text) in text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let line = parse_line(text).map_err(|why| ReportError::Line {
            file: file.to_owned(),
            line: index + 1,
            why,
        })?;
        lines.extend(line);
    }
    Ok(lines)
}

fn parse_line(text: &str) -> Result<Option<Line>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        if error.is_eof() {
            "the line breaks off: run the same `kiv eval --out` again to complete it, \
             or delete the line"
                .to_owned()
        } else {
            "this is not JSON: give files that `kiv eval --out` wrote".to_owned()
        }
    })?;
    let other = || "this is JSON, but no line of `kiv eval`".to_owned();
    let Some(object) = value.as_object() else {
        return Err(other());
    };
    if value["header"] == true {
        let header: Header = serde_json::from_value(value)
            .map_err(|e| format!("this header is not one of `kiv eval`: {e}"))?;
        return Ok(Some(Line::Header(Box::new(header))));
    }
    if ["task", "policy", "n_ctx"]
        .iter()
        .any(|key| !object.contains_key(*key))
    {
        return Err(other());
    }
    if value["summary"] == true {
        return Ok(None);
    }
    let bad = |e: serde_json::Error| format!("{}: {e}", other());
    let case: Case = serde_json::from_value(value.clone()).map_err(bad)?;
    let found = if let Some(pass) = value["pass"].as_bool() {
        Found::Answer {
            pass,
            said: case.said(),
        }
    } else if object.contains_key("mass_mean") {
        Found::Recall(serde_json::from_value(value).map_err(bad)?)
    } else if object.contains_key("kld_mean") {
        Found::Divergence(serde_json::from_value(value).map_err(bad)?)
    } else {
        return Err(format!(
            "{}: it has no `pass`, `mass_mean` or `kld_mean`",
            other()
        ));
    };
    let is_full = case.policy == "full";
    let budget = case.kv_budget.filter(|_| !is_full);
    let question = case.question();
    let key = match &case.case {
        Some(key) => format!("{key} {}", case.question),
        None => format!("{} {budget:?} {:?} {question}", case.policy, case.read_by),
    };
    Ok(Some(Line::Record(Box::new(Record {
        budget,
        n_ctx: case.n_ctx,
        depth: case.depth,
        entries: case.entries,
        records: case.records,
        hops: case.hops,
        read_by: case.read_by,
        key,
        question,
        found,
        task: case.task,
        policy: case.policy,
    }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        parse("a.jsonl", text).unwrap_err().to_string()
    }

    #[test]
    fn foreign_lines_are_named() {
        let good = r#"{"task":"needle","policy":"full","n_ctx":4096,"pass":true}"#;
        assert_eq!(parse("a", good).unwrap().len(), 1);
        insta::assert_snapshot!(
            [
                why(&format!("{good}\n\nreading: 100 %")),
                why(&format!("{good}\n{{\"task\":\"need")),
                why(r#"{"policy":"full","n_ctx":4096,"prefill_s":1.0}"#),
                why("[1, 2]"),
                why(r#"{"task":"needle","policy":"full","n_ctx":4096}"#),
                why(r#"{"task":"needle","policy":"full","n_ctx":"4K","pass":true}"#),
                why(r#"{"header":true,"seed":"one"}"#),
            ]
            .join("\n")
        );
    }
}
