//! Seeded English prose of any length, with needles hidden at known depths.
//!
//! [`Prose`] writes paragraphs from a grammar of its own: no corpus, no two
//! sentences alike except by accident, the same text for a seed on every
//! platform. [`Haystack`] fills a token budget with it and puts [`Needle`]s
//! between its sentences; the prose itself never speaks of secret codes, never
//! uses a word of a needle's name and has no number of four digits or more.
//!
//! ```
//! use kiv_haystack::{Haystack, HaystackSpec};
//!
//! // A real caller counts with the model's tokenizer.
//! let mut words = |text: &str| text.split_whitespace().count();
//! let spec = HaystackSpec::new(1, 2_000, vec![0.1, 0.5, 0.9]);
//! let haystack = Haystack::build(&spec, &mut words)?;
//! assert!(haystack.n_tokens <= 2_000);
//! let placed = &haystack.needles[1];
//! assert!(haystack.text[placed.offset..].starts_with(&placed.needle.sentence));
//! # Ok::<(), kiv_haystack::HaystackError>(())
//! ```

mod grammar;
mod haystack;
mod lexicon;
mod morph;
mod needle;
mod prose;
mod templates;

pub use haystack::{Haystack, HaystackError, HaystackSpec, PlacedNeedle};
pub use needle::{NameSet, Needle};
pub use prose::Prose;
