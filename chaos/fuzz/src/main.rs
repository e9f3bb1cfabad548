//! `warren-fuzz`: libFuzzer over the targets. `make fuzz` builds it with coverage and runs it.
//!
//! ```text
//! warren-fuzz list
//! warren-fuzz seeds TARGET FOLDER      # real inputs, and the words of the target's language in FOLDER.words
//! warren-fuzz run TARGET [libFuzzer's own arguments]
//! ```

use std::{
    ffi::{CString, c_char, c_int},
    fs,
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

use chaos_fuzz::{TARGETS, Target, find};
// Links libFuzzer's archive.
use libfuzzer_sys as _;

static TARGET: OnceLock<&Target> = OnceLock::new();

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        one: unsafe extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;

    /// Of `libfuzzer-sys`: makes a slice and calls [`rust_fuzzer_test_input`].
    fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int;
}

/// The function that `libfuzzer-sys` calls with each input.
#[unsafe(no_mangle)]
fn rust_fuzzer_test_input(bytes: &[u8]) -> i32 {
    (TARGET.get().expect("set before the engine runs").run)(bytes);
    0
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        ["seeds", name, folder] => match find(name) {
            Some(target) => write_seeds(target, Path::new(folder)),
            None => return unknown(name),
        },
        ["run", name, rest @ ..] => match find(name) {
            Some(target) => return run(target, &arguments[0], rest),
            None => return unknown(name),
        },
        _ => {
            eprintln!("usage: warren-fuzz list | seeds TARGET FOLDER | run TARGET [ARGUMENTS OF LIBFUZZER]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn unknown(name: &str) -> ExitCode {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    eprintln!("no target {name}; there are {}", names.join(", "));
    ExitCode::FAILURE
}

fn write_seeds(target: &Target, folder: &Path) {
    fs::create_dir_all(folder).expect("make the folder");
    for (index, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{index}")), seed).expect("write a seed");
    }
    // libFuzzer's dictionary: one quoted word a line.
    let words: String = target.words.iter().map(|word| format!("\"{}\"\n", escape(word))).collect();
    fs::write(folder.with_extension("words"), words).expect("write the words");
}

fn escape(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    word.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("\\x{byte:02x}") })
        .collect()
}

fn run(target: &'static Target, program: &str, rest: &[&str]) -> ExitCode {
    TARGET.set(target).unwrap_or_else(|_| unreachable!("set once"));
    // A panic is a finding: libFuzzer sees it as the end of the process.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let texts: Vec<CString> = [program]
        .iter()
        .chain(rest)
        .map(|text| CString::new(*text).expect("arguments have no zero bytes"))
        .collect();
    let mut pointers: Vec<*mut c_char> =
        texts.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let mut count = texts.len() as c_int;
    let mut vector = pointers.as_mut_ptr();
    // SAFETY: `count` zero-terminated texts, followed by a null pointer; all outlive the engine.
    let code = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut vector, LLVMFuzzerTestOneInput) };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
