//! Million-token contexts for any GGUF model on a small GPU or a plain CPU.
//!
//! kiv runs llama.cpp with another KV cache: attention sinks, a recent window
//! and a fixed number of slots stay on the compute device, everything older
//! goes to host RAM, and before each layer's attention the blocks that its
//! queries want are copied back. Nothing of the context is dropped, the model
//! is not changed, and the memory on the device is constant.
//!
//! ```
//! use kiv::{GenerateOptions, Model, Sampling};
//!
//! # fn main() -> Result<(), kiv::Error> {
//! let model = Model::load("models/tiny-f16.gguf")?;
//! let mut session = model.session().policy("exact").window(256).budget(256).build()?;
//!
//! let document = "The secret code of Amber Falcon is 48213.";
//! session.read(&model.tokenize(document, true))?;
//! let question = "\nWhat is the secret code of Amber Falcon? The secret code of Amber Falcon is";
//! session.read_one_by_one(&model.tokenize(question, false))?;
//!
//! let mut answer = String::new();
//! let options = GenerateOptions { sampling: Sampling::greedy(), ..Default::default() };
//! for piece in session.generate(options).take(6) {
//!     answer += &piece?.text;
//! }
//! assert_eq!(answer, " 48213");
//! # Ok(())
//! # }
//! ```
//!
//! A cache policy of one's own implements [`policy::Policy`] and is handed to
//! [`SessionBuilder::custom_policy`]; `examples/` has a complete one. What a
//! model is and what it will take is read from the file alone by
//! [`inspect::ModelFile`].
//!
//! # Speed of builds
//! llama.cpp's CPU code is compiled for what rustc is told. An embedder who
//! builds without `-C target-cpu=native` (or the feature `dynamic-backends`)
//! gets plain SSE2, several times slower: see [`system_info`].
//! On Intel's CPUs with AMX, `CFLAGS` and `CXXFLAGS` of `-U__AMX_INT8__` let
//! llama.cpp lay weights out for the vector units, which reads faster; without
//! them they stay as they are in the file, since its code for AMX may crash.

pub use kiv_runtime::{
    Attended, AttentionTap, ChatTemplate, Chosen, Error, Finish, GenerateOptions, Generation,
    Grammar, LoadOptions, Memory, Message, Model, Outputs, Piece, Positions, Progress,
    QuantizeType, RopeScaling, Sampling, Session, SessionBuilder, Stats, Token, TokenStream,
    pool_layout, quantize, set_verbose, supports_gpu, system_info,
};

/// The plug-in interface: what a policy sees and answers.
pub mod policy {
    pub use kiv_policies::{NAMES, by_name};
    pub use kiv_policy::*;
}

/// What is in a model file, and what memory a context will take.
pub mod inspect {
    pub use kiv_gguf::*;
    pub use kiv_pool::{PoolConfig, PoolError, PoolLayout};
}
