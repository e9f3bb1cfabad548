//! Cycles of imports in small crates.

use std::fs;

use super::*;

/// The imports in cycles of a crate of these files, as `a.rs -> b.rs`.
fn cycles(name: &str, files: &[(&str, &str)]) -> Vec<String> {
    let folder = std::env::temp_dir().join(format!("warren-xtask-{}-{name}", std::process::id()));
    for (file, text) in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write a source");
    }
    let imports = Imports::of_crate(&folder.join("lib.rs"));
    let short = |path: &Path| path.strip_prefix(&folder).expect("in the folder").display().to_string();
    let found = imports.in_cycles().iter().map(|(a, b)| format!("{} -> {}", short(a), short(b))).collect();
    fs::remove_dir_all(&folder).expect("remove the folder");
    found
}

#[test]
fn imports_between_siblings_form_a_cycle() {
    let root = ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;");
    let both = ["a.rs -> b.rs", "b.rs -> a.rs"];
    assert_eq!(
        cycles(
            "direct",
            &[
                root,
                ("a.rs", "use crate::b::B; pub struct A(B);"),
                ("b.rs", "use super::a::A; pub struct B(A);")
            ]
        ),
        both
    );
    // By a re-export of the root, by a path in an expression, and by one in a macro call.
    assert_eq!(
        cycles(
            "reexport",
            &[
                root,
                ("a.rs", "use crate::B; pub struct A(B);"),
                ("b.rs", "pub struct B; fn f() { crate::a::g() }")
            ]
        ),
        both
    );
    assert_eq!(
        cycles(
            "macro",
            &[
                root,
                ("a.rs", "use crate::b::B; pub struct A(B);"),
                ("b.rs", "pub struct B; fn f() { println!(\"{}\", crate::a::g()) }")
            ]
        ),
        both
    );
}

#[test]
fn imports_of_parents_and_of_tests_form_no_cycle() {
    let root = ("lib.rs", "mod a; pub struct Root(a::A);");
    assert_eq!(cycles("parent", &[root, ("a.rs", "use super::Root; pub struct A(Box<Root>);")]), [""; 0]);
    let tests = "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }";
    assert_eq!(
        cycles("tests", &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", tests)]),
        [""; 0]
    );
}

#[test]
fn imports_of_a_grandparent_form_a_cycle_through_its_other_children() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod deep; pub struct A;"),
        ("a/deep.rs", "use crate::b::B;"),
        ("b.rs", "use crate::a::deep::D; pub struct B;"),
    ];
    assert_eq!(cycles("deep", &files), ["a/deep.rs -> b.rs", "b.rs -> a/deep.rs"]);
}
