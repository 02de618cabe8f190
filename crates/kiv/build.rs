//! Where the program looks for llama.cpp's libraries, if they are linked when it starts
//! (feature `dynamic-backends`): beside itself, then where the build has left them.

fn main() {
    println!("cargo::rerun-if-changed=crates/kiv/build.rs");
    let unix = std::env::var_os("CARGO_CFG_UNIX").is_some();
    let Some(libraries) = std::env::var_os("DEP_KIV_RUNTIME_LIBRARIES").filter(|_| unix) else {
        return;
    };
    let macos = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos");
    let beside = if macos { "@loader_path" } else { "$ORIGIN" };
    for folder in [beside, &libraries.to_string_lossy()] {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
}
