//! The evaluation of a test kernel's console (`deploy/kernels/judge.awk`).

use std::{
    io::Write,
    process::{Command, Stdio},
};

use deploy_xtask::root;

/// Checks the report on a console; the exit code must agree with the number of failures.
#[track_caller]
fn check(console: &str, report: &str) {
    let mut awk = Command::new("awk")
        .args(["-f".into(), root().join("deploy/kernels/judge.awk").into_os_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run awk");
    awk.stdin.take().expect("a pipe").write_all(console.as_bytes()).expect("write to awk");
    let output = awk.wait_with_output().expect("wait for awk");
    assert_eq!(String::from_utf8_lossy(&output.stdout), report);
    assert_eq!(output.status.success(), report.contains(" 0 failed,"));
}

const RESULT: &str = "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";

#[test]
fn kernel_console_is_counted() {
    check(
        &format!(
            "== kernel 6.1.0\n== begin packet\nskipped: no TCX\n{RESULT}== end packet 0\n\
             == begin lab\n== end lab 0\n== done\n"
        ),
        "skipped: no TCX (1 tests)\n6.1.0: 7 passed, 0 failed, 2 skipped\n",
    );
}

#[test]
fn kernel_console_failures_of_tests_lab_and_kernel_are_counted() {
    let failed = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
    check(
        &format!("== kernel 6.1.0\n== begin packet\n{failed}== end packet 101\n== done\n"),
        "6.1.0: 3 passed, 2 failed, 0 skipped\n",
    );
    check("== kernel 6.1.0\n== begin lab\n== end lab 1\n== done\n", "6.1.0: 0 passed, 1 failed, 0 skipped\n");
    check(
        &format!(
            "== kernel 6.1.0\n== begin packet\n{RESULT}== end packet 0\n== complaint BUG: oops\n== done\n"
        ),
        "the kernel says: BUG: oops\n6.1.0: 7 passed, 1 failed, 1 skipped\n",
    );
}

#[test]
fn kernel_console_without_its_end_is_a_failure() {
    check("", "it did not come to its end\nno kernel: 0 passed, 1 failed, 0 skipped\n");
    check(
        &format!("== kernel 6.1.0\n== begin packet\n{RESULT}"),
        "it did not come to its end, but stopped in packet\n6.1.0: 7 passed, 1 failed, 1 skipped\n",
    );
    check(
        "== kernel 6.1.0\n== begin packet\n== end packet 139\n== done\n",
        "packet ended with 139\n6.1.0: 0 passed, 1 failed, 0 skipped\n",
    );
    check(
        &format!("== kernel 6.1.0\n== begin packet\n{RESULT}== end packet 134\n== done\n"),
        "packet ended with 134\n6.1.0: 7 passed, 1 failed, 1 skipped\n",
    );
}
