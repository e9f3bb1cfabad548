//! The kernel's verifier takes every program.

use aya::{Ebpf, programs::SchedClassifier};
use datapath_linux::object::{OBJECT, Program};

#[test]
fn verifier_takes_every_program() {
    let mut object = Ebpf::load(OBJECT).expect("maps can be made");
    for program in Program::ALL {
        let classifier: &mut SchedClassifier =
            object.program_mut(program.name()).expect("in the object").try_into().expect("a classifier");
        classifier.load().unwrap_or_else(|error| panic!("{}: {error:#?}", program.name()));
        let info = classifier.info().expect("loaded");
        println!(
            "{}: {} verified instructions",
            program.name(),
            info.verified_instruction_count().unwrap_or(0)
        );
    }
}
