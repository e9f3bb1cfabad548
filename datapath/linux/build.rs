//! Builds the kernel programs (`datapath-ebpf`) and hands their object to this crate.
//!
//! Where the object comes from, first match wins:
//! 1. `BPF_PREBUILT=<directory>` that holds `warren-bpf` and `warren-bpf-test` (for packagers);
//! 2. a rustc with a prebuilt `core` for the target: `$BPF_RUSTC`, cargo's own, `/usr/bin/rustc` (Debian's `rustc-web`);
//! 3. a rustc with its library source, by `-Z build-std=core`: `$BPF_RUSTC`, rustup's nightly.
//!
//! Invariant: never a stub. Without an object the build fails and says what to install.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::{Object, ObjectSymbol};

const TARGET: &str = "bpfel-unknown-none";

/// The objects, and the variables by which this crate finds them. The second holds what only tests load.
const OBJECTS: [(&str, &str); 2] =
    [("warren-bpf", "WARREN_BPF_OBJECT"), ("warren-bpf-test", "WARREN_BPF_TEST_OBJECT")];

/// Without `--disable-expand-memcpy-in-order` every 6-byte copy becomes a call to a byte loop (10-31 % of the
/// time per packet); BTF needs debug information.
const RUSTFLAGS: [&str; 4] =
    ["-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// The workspace's release profile is made for the host; bpf-linker wants whole crates and optimises itself.
const PROFILE: [&str; 5] = [
    "profile.release.lto=\"off\"",
    "profile.release.panic=\"abort\"",
    "profile.release.opt-level=3",
    "profile.release.codegen-units=1",
    "profile.release.debug=2",
];

const INSTALL: &str = "run deploy/setup.sh, or by hand on Debian 12 and newer:\n\
    apt-get install rustc-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev\n\
    LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --no-default-features --features llvm-22\n\
    elsewhere: rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir.ancestors().nth(2).expect("this crate is at datapath/linux").to_path_buf();
    watch();

    let objects = match env::var_os("BPF_PREBUILT") {
        Some(directory) => PathBuf::from(directory),
        None => build(&workspace, &PathBuf::from(variable("OUT_DIR")).join("bpf")),
    };
    for (name, variable) in OBJECTS {
        let path = objects.join(name);
        refuse_panics(&path);
        println!("cargo::rustc-env={variable}={}", path.display());
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// By relative paths: two checkouts that share a target directory must not watch each other's sources.
fn watch() {
    for path in ["abi", "packet", "ebpf"] {
        for part in ["src", "Cargo.toml"] {
            println!("cargo::rerun-if-changed=../{path}/{part}");
        }
    }
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["BPF_PREBUILT", "BPF_RUSTC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// Runs an inner cargo and returns the directory of the objects. Its target directory is its own: it would
/// wait for ever for the lock that the outer cargo holds.
fn build(workspace: &Path, target_dir: &Path) -> PathBuf {
    let linker = find_linker();
    let compiler = Compiler::find();

    let mut cargo = Command::new(&compiler.cargo);
    cargo
        .current_dir(workspace)
        .args(["build", "--locked", "--release", "--package", "datapath-ebpf", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir);
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() {
        cargo.args(["--features", "next-layout"]);
    }
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    if compiler.build_std {
        cargo.args(["-Z", "build-std=core"]);
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(belongs_to_the_outer_build) {
            cargo.env_remove(&name);
        }
    }
    let mut flags = vec![format!("-Clinker={}", linker.display())];
    flags.extend(RUSTFLAGS.map(String::from));
    cargo
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));

    let status = cargo.status().unwrap_or_else(|error| panic!("run {}: {error}", compiler.cargo.display()));
    assert!(
        status.success(),
        "the kernel programs do not build with {}; is {} of the same LLVM major (`rustc -vV`)? If not, {INSTALL}",
        compiler.rustc.display(),
        linker.display(),
    );
    target_dir.join(TARGET).join("release")
}

/// Variables that would carry the outer build's target, flags or wrappers into the inner one.
fn belongs_to_the_outer_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"];
    (name.starts_with("CARGO") && !kept.iter().any(|prefix| name.starts_with(prefix)))
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTFLAGS")
        || name == "RUSTUP_TOOLCHAIN"
}

struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    build_std: bool,
}

impl Compiler {
    fn find() -> Self {
        let named = env::var_os("BPF_RUSTC").map(PathBuf::from);
        let cargos_own = env::var_os("RUSTC").map(PathBuf::from);
        let prebuilt = [named.clone(), cargos_own, Some("/usr/bin/rustc".into())]
            .into_iter()
            .flatten()
            .find(|rustc| has_prebuilt_core(rustc));
        if let Some(rustc) = prebuilt {
            return Self { rustc, cargo: variable("CARGO").into(), build_std: false };
        }
        let from_source =
            [named, rustup_nightly()].into_iter().flatten().find(|rustc| has_library_source(rustc));
        match from_source {
            // `-Z build-std` wants the cargo of the same toolchain.
            Some(rustc) => Self { cargo: rustc.with_file_name("cargo"), rustc, build_std: true },
            None => panic!("no Rust compiler for {TARGET}: {INSTALL}"),
        }
    }
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    print(rustc, &["--print", "target-libdir", "--target", TARGET])
        .and_then(|directory| fs::read_dir(directory).ok())
        .is_some_and(|files| {
            files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
        })
}

fn has_library_source(rustc: &Path) -> bool {
    print(rustc, &["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn rustup_nightly() -> Option<PathBuf> {
    print(Path::new("rustup"), &["which", "--toolchain", "nightly", "rustc"]).map(PathBuf::from)
}

/// First line of what a command says, if it succeeds.
fn print(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The linker's full path: the inner build may be run by a cargo with another `PATH`.
fn find_linker() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(cargo_home)
        .map(|directory| directory.join("bpf-linker"))
        .find(|linker| linker.is_file())
        .unwrap_or_else(|| panic!("no bpf-linker: {INSTALL}"))
}

/// A panic that can be reached links but does not load; better to hear of it now.
fn refuse_panics(path: &Path) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    let file = object::File::parse(&*bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let panics: Vec<_> = file
        .symbols()
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.contains("panicking"))
        .collect();
    assert!(panics.is_empty(), "{} can panic (an index, a division, an unwrap): {panics:?}", path.display());
}
