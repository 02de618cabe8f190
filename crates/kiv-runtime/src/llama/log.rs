//! llama.cpp's log. Its functions return null without a reason; the reason is
//! in the log, so the last complaints are kept for error messages.

use llama_cpp_sys_2 as sys;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Complaints kept.
const KEPT: usize = 32;

thread_local! {
    /// Of what this thread has asked for: another's reasons are none of its own.
    static COMPLAINTS: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

static VERBOSE: AtomicBool = AtomicBool::new(false);
static INSTALL: Once = Once::new();

/// Starts to listen; safe to call again.
pub(super) fn install() {
    // SAFETY: `receive` is a valid callback for the whole process and takes no
    // user data.
    INSTALL.call_once(|| unsafe { sys::llama_log_set(Some(receive), std::ptr::null_mut()) });
}

/// Whether llama.cpp's own log goes to standard error.
pub(crate) fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Forgets earlier complaints about what this thread asked for, so that [`last_error`] speaks of what follows.
pub(crate) fn clear() {
    COMPLAINTS.with_borrow_mut(VecDeque::clear);
}

/// The most telling complaint since [`clear`]: llama.cpp states the cause
/// first and then, level by level, that something failed.
pub(crate) fn last_error() -> Option<String> {
    COMPLAINTS.with_borrow(|complaints| {
        let telling = complaints
            .iter()
            .find_map(|line| line.split_once("error loading model: "));
        let text = match telling {
            Some((_, cause)) => cause,
            None => complaints.front()?,
        };
        // Drop "function_name: ".
        let text = match text.split_once(": ") {
            Some((head, tail)) if !head.contains(' ') => tail,
            _ => text,
        };
        Some(text.trim().to_owned())
    })
}

/// What llama.cpp calls for every piece of its log.
///
/// SAFETY: only llama.cpp calls it, with null or a null-terminated string.
unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a null-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        eprint!("{text}");
    }
    if level == sys::GGML_LOG_LEVEL_ERROR || level == sys::GGML_LOG_LEVEL_WARN {
        let line = text.trim();
        // Warnings are kept only when they carry a cause.
        if !line.is_empty() && (level == sys::GGML_LOG_LEVEL_ERROR || line.contains("error")) {
            // A thread that is ending has nobody to tell.
            let _ = COMPLAINTS.try_with(|complaints| {
                let mut complaints = complaints.borrow_mut();
                if complaints.len() == KEPT {
                    complaints.pop_front();
                }
                complaints.push_back(line.to_owned());
            });
        }
    }
}
