//! Tells the program's build where llama.cpp's libraries are, if they are linked when it
//! starts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // llama-cpp-sys-2 tells of the folder of the backends, which is beside that of libraries.
    if let Some(backends) = std::env::var_os("DEP_LLAMA_BACKENDS_DIR") {
        let beside = |name| std::path::Path::new(&backends).with_file_name(name);
        let libraries = ["lib", "lib64"].map(beside);
        if let Some(libraries) = libraries.iter().find(|folder| folder.is_dir()) {
            println!("cargo::metadata=LIBRARIES={}", libraries.display());
        }
    }
}
