//! llama.cpp as a whole, and the devices that it can compute on.

use super::log;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;
use std::ffi::CStr;
use std::sync::OnceLock;

/// llama.cpp, started once per process and never stopped.
pub(crate) fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        log::install();
        let backend = LlamaBackend::init().expect("llama.cpp is started here only");
        #[cfg(feature = "dynamic-backends")]
        loaded::load();
        backend
    })
}

/// Whether this build can use a GPU that is there.
pub(crate) fn supports_gpu() -> bool {
    backend().supports_gpu_offload()
}

/// Memory of a GPU that ggml computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// ggml's name of the device, such as `CUDA0`.
    pub name: String,
    /// Bytes that nobody has, of this process or another one.
    pub free: usize,
    /// All bytes.
    pub total: usize,
}

/// Memory of the GPUs that ggml computes on.
#[must_use]
pub fn device_memory() -> Vec<DeviceMemory> {
    backend();
    let mut all = Vec::new();
    // SAFETY: looks among the devices there are; names are static and end with a zero byte; the
    // numbers that are written to live long enough.
    unsafe {
        for i in 0..sys::ggml_backend_dev_count() {
            let device = sys::ggml_backend_dev_get(i);
            let kind = sys::ggml_backend_dev_type(device);
            let gpus = [
                sys::GGML_BACKEND_DEVICE_TYPE_GPU,
                sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
            ];
            if !gpus.contains(&kind) {
                continue;
            }
            let (mut free, mut total) = (0, 0);
            sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
            let name = CStr::from_ptr(sys::ggml_backend_dev_name(device));
            let name = name.to_string_lossy().into_owned();
            all.push(DeviceMemory { name, free, total });
        }
    }
    all
}

/// llama.cpp's own line on what the build uses of this CPU.
pub(crate) fn system_info() -> String {
    backend();
    // SAFETY: llama.cpp returns a pointer to a null-terminated static buffer.
    let text = unsafe { CStr::from_ptr(sys::llama_print_system_info()) };
    text.to_string_lossy().trim().to_owned()
}

/// Whether ggml would multiply with AMX, the matrix unit of Intel's Xeons since Sapphire Rapids.
///
/// It has to be kept from it: ggml puts together the description of its tiles in a variable of
/// which GCC's `_tile_loadconfig` says to read the first eight bytes. GCC 12 leaves the others
/// zero, and the first product of quantized weights ends the process (SIGILL; llama.cpp PR 26954).
pub(super) fn has_amx() -> bool {
    backend();
    // SAFETY: looks among the devices there are; the name belongs to a function of that type,
    // which gives null or a list that ends with null; names are static.
    unsafe {
        (0..sys::ggml_backend_dev_count()).any(|i| {
            let device = sys::ggml_backend_dev_get(i);
            let backend = sys::ggml_backend_dev_backend_reg(device);
            let name = c"ggml_backend_dev_get_extra_bufts".as_ptr();
            let address = sys::ggml_backend_reg_get_proc_address(backend, name);
            let list: sys::ggml_backend_dev_get_extra_bufts_t = std::mem::transmute(address);
            let mut next = list.map_or(std::ptr::null_mut(), |list| list(device));
            while !next.is_null() && !(*next).is_null() {
                if CStr::from_ptr(sys::ggml_backend_buft_name(*next)) == c"AMX" {
                    return true;
                }
                next = next.add(1);
            }
            false
        })
    }
}

/// Why ggml computes on no GPU of CUDA's, if the build has that backend: the driver alone is
/// not enough for it.
pub(crate) fn cuda_missing() -> Option<String> {
    if !cfg!(feature = "cuda") {
        return None;
    }
    backend();
    // SAFETY: looks a name up among the backends there are.
    let backend = unsafe { sys::ggml_backend_reg_by_name(c"CUDA".as_ptr()) };
    if backend.is_null() {
        #[cfg(feature = "dynamic-backends")]
        return Some(loaded::why_not("cuda"));
        #[cfg(not(feature = "dynamic-backends"))]
        return Some("it is not there".to_owned());
    }
    // SAFETY: backends stay once they are there.
    let none = unsafe { sys::ggml_backend_reg_dev_count(backend) } == 0;
    none.then(|| "it finds no GPU that it can use".to_owned())
}

/// Backends in libraries, which are not there until they are asked for.
#[cfg(feature = "dynamic-backends")]
mod loaded {
    use super::log;
    use llama_cpp_2::llama_backend::load_backends_from_path;
    use llama_cpp_sys_2 as sys;
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    use std::ffi::CString;
    use std::path::PathBuf;

    /// Where they may be: beside the program, which may have travelled; where the build has
    /// left them.
    fn folders() -> impl Iterator<Item = PathBuf> {
        let program = std::env::current_exe().ok();
        let beside = program.and_then(|program| Some(program.parent()?.to_owned()));
        beside
            .into_iter()
            .chain(sys::BACKENDS_DIR.map(PathBuf::from))
    }

    /// Loads those of the first folder that has one for the CPU: two copies would be two CPUs.
    pub(super) fn load() {
        for folder in folders().filter(|folder| folder.to_str().is_some()) {
            load_backends_from_path(&folder);
            // SAFETY: looks among the devices there are.
            let cpu = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
            if !cpu.is_null() {
                break;
            }
        }
    }

    /// Why a backend was not loaded, of which ggml says nothing unless it is asked for by its
    /// path.
    pub(super) fn why_not(name: &str) -> String {
        let file = format!("{DLL_PREFIX}ggml-{name}{DLL_SUFFIX}");
        let path = folders()
            .map(|folder| folder.join(&file))
            .find(|p| p.is_file());
        let path = path.and_then(|path| CString::new(path.to_str()?).ok());
        let Some(path) = path else {
            return format!("there is no {file}");
        };
        log::clear();
        // SAFETY: the path ends with a zero byte; ggml keeps what it loads.
        let backend = unsafe { sys::ggml_backend_load(path.as_ptr()) };
        let why = backend.is_null().then(log::last_error).flatten();
        let why = why.unwrap_or_else(|| format!("{file} was not loaded"));
        // The loader's own words name the file, too.
        let said_twice = format!("failed to load {}: ", path.to_string_lossy());
        why.strip_prefix(&said_twice).unwrap_or(&why).to_owned()
    }
}
