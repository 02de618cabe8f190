//! Typed look-ups in a model's metadata.

use std::path::Path;

use serde_json::Value;

use crate::error::GgufError;
use crate::scan::Metadata;

/// Largest size that is believed: a hundred times that of any model, and small
/// enough that products of three stay within 64 bits.
const MAX_SIZE: u64 = 1 << 20;

/// The keys of one architecture: `{arch}.{suffix}`.
pub(crate) struct Hparams<'a> {
    pub path: &'a Path,
    pub arch: &'a str,
    pub metadata: &'a Metadata,
}

impl Hparams<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.arch)
    }

    fn get(&self, suffix: &str) -> Option<&Value> {
        self.metadata.get(&self.key(suffix))
    }

    /// A size: layers, heads, dimensions.
    pub fn size(&self, suffix: &str) -> Result<Option<usize>, GgufError> {
        self.get(suffix)
            .map(|v| self.check(suffix, v, MAX_SIZE))
            .transpose()
    }

    /// A number of tokens, which may be anything that llama.cpp can number: its positions are
    /// signed.
    pub fn tokens(&self, suffix: &str) -> Result<Option<usize>, GgufError> {
        self.get(suffix)
            .map(|v| self.check(suffix, v, i32::MAX as u64))
            .transpose()
    }

    /// A key that must be there.
    pub fn missing(&self, suffix: &str) -> GgufError {
        GgufError::MissingKey {
            path: self.path.into(),
            key: self.key(suffix),
        }
    }

    /// A key with a value that cannot be; `detail` continues "key K …".
    pub fn bad(&self, suffix: &str, detail: impl Into<String>) -> GgufError {
        GgufError::BadKey {
            path: self.path.into(),
            key: self.key(suffix),
            detail: detail.into(),
        }
    }

    /// One value per layer, from an array of them or one value for all.
    pub fn per_layer(&self, suffix: &str, n: usize) -> Result<Option<Vec<usize>>, GgufError> {
        let Some(value) = self.get(suffix) else {
            return Ok(None);
        };
        let Value::Array(array) = value else {
            return Ok(Some(vec![self.check(suffix, value, MAX_SIZE)?; n]));
        };
        if array.len() != n {
            return Err(self.bad(suffix, format!("has {} values for {n} layers", array.len())));
        }
        array
            .iter()
            .map(|v| self.check(suffix, v, MAX_SIZE))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The largest of a value per layer, or the value for all; 0 when absent.
    pub fn largest(&self, suffix: &str) -> Result<usize, GgufError> {
        match self.get(suffix) {
            None => Ok(0),
            Some(Value::Array(array)) => array
                .iter()
                .try_fold(0, |max, v| Ok(self.check(suffix, v, MAX_SIZE)?.max(max))),
            Some(value) => self.check(suffix, value, MAX_SIZE),
        }
    }

    /// An array of flags, padded with `false` to one per layer; `None` when
    /// the key is absent or not an array.
    pub fn flags(&self, suffix: &str, n: usize) -> Result<Option<Vec<bool>>, GgufError> {
        let Some(Value::Array(array)) = self.get(suffix) else {
            return Ok(None);
        };
        let flag = |v: &Value| match v {
            Value::Bool(flag) => Ok(*flag),
            v => Ok(self.check(suffix, v, MAX_SIZE)? != 0),
        };
        let mut flags = array
            .iter()
            .take(n)
            .map(flag)
            .collect::<Result<Vec<_>, _>>()?;
        flags.resize(n, false);
        Ok(Some(flags))
    }

    /// Whether the key holds an array.
    pub fn is_array(&self, suffix: &str) -> bool {
        matches!(self.get(suffix), Some(Value::Array(_)))
    }

    /// A flag that is set or clear; `None` when absent.
    pub fn flag(&self, suffix: &str) -> Option<bool> {
        self.get(suffix)?.as_bool()
    }

    /// A float; `None` when absent or not a number.
    pub fn float(&self, suffix: &str) -> Option<f64> {
        self.get(suffix)?.as_f64()
    }

    fn check(&self, suffix: &str, value: &Value, max: u64) -> Result<usize, GgufError> {
        value
            .as_u64()
            .filter(|v| *v <= max)
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| match value {
                Value::Array(_) => self.bad(suffix, "is an array, not a number"),
                value => self.bad(suffix, format!("is {value}, which cannot be")),
            })
    }
}
