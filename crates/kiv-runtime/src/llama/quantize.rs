//! llama.cpp's own quantizer, for checks on re-quantized models.

use super::log;
use llama_cpp_sys_2 as sys;
use std::ffi::CString;
use std::path::Path;

/// Weight types that models commonly come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "llama.cpp's names")]
#[expect(missing_docs, reason = "the names say it")]
pub enum QuantizeType {
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q4_K_M,
    Q3_K_M,
    IQ4_XS,
}

impl QuantizeType {
    /// All of them, largest first.
    pub const ALL: [Self; 6] = [
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q4_K_M,
        Self::Q3_K_M,
        Self::IQ4_XS,
    ];

    fn ftype(self) -> sys::llama_ftype {
        match self {
            Self::Q8_0 => sys::LLAMA_FTYPE_MOSTLY_Q8_0,
            Self::Q6_K => sys::LLAMA_FTYPE_MOSTLY_Q6_K,
            Self::Q5_K_M => sys::LLAMA_FTYPE_MOSTLY_Q5_K_M,
            Self::Q4_K_M => sys::LLAMA_FTYPE_MOSTLY_Q4_K_M,
            Self::Q3_K_M => sys::LLAMA_FTYPE_MOSTLY_Q3_K_M,
            Self::IQ4_XS => sys::LLAMA_FTYPE_MOSTLY_IQ4_XS,
        }
    }
}

/// Writes `source` to `target` with its weights in another type.
///
/// # Errors
/// llama.cpp's reason in words.
pub fn quantize(
    source: &Path,
    target: &Path,
    to: QuantizeType,
    threads: usize,
) -> Result<(), String> {
    super::backend();
    log::clear();
    let c_path = |path: &Path| {
        let text = path
            .to_str()
            .ok_or_else(|| format!("{}: not UTF-8", path.display()))?;
        CString::new(text).map_err(|e| e.to_string())
    };
    let (from, into) = (c_path(source)?, c_path(target)?);
    // SAFETY: the paths are null-terminated and outlive the call; the
    // parameters are llama.cpp's defaults but for plain numbers.
    let code = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = to.ftype();
        params.nthread = i32::try_from(threads).unwrap_or(1);
        params.allow_requantize = true;
        sys::llama_model_quantize(from.as_ptr(), into.as_ptr(), &raw const params)
    };
    if code == 0 {
        Ok(())
    } else {
        Err(log::last_error().unwrap_or_else(|| format!("llama.cpp error {code}")))
    }
}
