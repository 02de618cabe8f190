//! A driver without a GPU, compiled by the host's compiler, for tests that run under it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the emulated driver, compiled once.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FOLDER.get_or_init(|| {
        // Another crate beside it has tests under it, too.
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = tempfile::tempdir().expect("a folder for the library");
        let path = folder.path().to_owned();
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let mut words = compiler.split_whitespace();
        let status = Command::new(words.next().expect("CXX names a compiler"))
            .args(words)
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"])
            // Jumps go from one stack to another, which checks would take for a mistake.
            .arg("-U_FORTIFY_SOURCE")
            .args(["-Wall", "-Wextra", "-Werror", "-I"])
            .arg(crates.join("../kernels"))
            .arg(crates.join("kiv-cuda/tests/emulated/libcuda.cpp"))
            .arg("-o")
            // The name that is looked for first.
            .arg(path.join("libcuda.so"))
            .status()
            .expect("the C++ compiler runs");
        assert!(status.success(), "the emulated driver does not compile");
        (folder, path)
    });
    path
}

/// Tests, each of which runs another one, which is otherwise ignored, under the emulated driver
/// in this environment.
macro_rules! emulated {
    ($($name:ident, $inner:ident, $environment:expr;)*) => {$(
        #[test]
        fn $name() {
            emulated::run(stringify!($inner), &$environment);
        }
    )*};
}

/// Runs a test of this program that is otherwise ignored under the emulated driver.
pub fn run(test: &str, environment: &[(&str, &str)]) {
    // Before all that is looked in already: llama.cpp may be in libraries, too.
    let mut folders = vec![folder().to_owned()];
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&others));
    let folders = std::env::join_paths(folders).expect("paths without colons");
    let output = Command::new(std::env::current_exe().expect("a test program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folders)
        .envs(environment.iter().copied())
        .output()
        .expect("it runs");
    let [out, err] =
        [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(
        output.status.success(),
        "{test}: {}\n{out}\n{err}",
        output.status
    );
    assert!(out.contains("1 passed"), "{out}");
}
