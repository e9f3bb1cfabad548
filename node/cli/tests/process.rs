//! The built `warren` as a shell sees it: exit codes, standard output, error output, and requests.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const WRONG_USAGE: i32 = 2;

fn warren(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.args(arguments).env_remove("WARREN_SOCKET").stdin(Stdio::null());
    command
}

/// Runs a command to its end. Returns the exit code, standard output and error output.
fn finish(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().expect("no signal killed it"), text(stdout), text(stderr))
}

/// A fake agent that gives every request the same answer.
struct Agent {
    folder: tempfile::TempDir,
}

impl Agent {
    fn start(status: &'static str, body: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("warren.sock")).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    request.push(byte[0]);
                }
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                // The client may have closed the connection.
                let _closed =
                    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("warren.sock")
    }

    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = warren(arguments);
        command.env("WARREN_SOCKET", self.socket());
        command
    }
}

#[test]
fn usage_error_exits_2_and_names_valid_usage() {
    let check = |arguments: &[&str], expected: &str| {
        let (code, stdout, stderr) = finish(&mut warren(arguments));
        assert_eq!((code, stdout.as_str()), (WRONG_USAGE, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?} says {stderr}");
    };
    check(&[], "Usage");
    check(&["no-such-command"], "unrecognized subcommand");
    check(&["status", "--no-such-flag"], "unexpected argument");
    check(&["status", "-o", "yaml"], "possible values: table, json");
    check(&["endpoint", "add", "web-1"], "--netns");
    check(&["endpoint", "add", "Web 1", "--netns", "web"], "Web 1");
    check(&["endpoint", "add", "web-1", "--netns", "web", "--ip", "10.0.0"], "--ip");
    check(&["endpoint", "add", "web-1", "--netns", "web", "--label", "app"], "key=value");
    check(&["cidr", "release", "10.0.0.0/33"], "CIDR");
    check(&["observe", "--verdict", "lost"], "forwarded or dropped");
    check(&["observe", "--protocol", "tpc"], "use tcp");
    check(&["observe", "--from", "Web 1"], "use an address");
    check(&["node", "remove"], "<NAME>");
    check(&["apply"], "--file <FILE|DIR>");
    check(&["get", "pod"], "possible values: service");
    check(&["delete"], "warren delete -f FILE|DIR");
    check(&["delete", "service"], "NAME");
    check(&["delete", "service", "web", "-f", "web.yaml"], "cannot be used with");
    check(&["doctor", "--tunnel-port", "70000"], "70000");
    check(&["completion", "tcsh"], "possible values");
}

#[test]
fn help_and_completion_need_no_agent() {
    for arguments in [&["--help"][..], &["observe", "--help"], &["completion", "bash"], &["--version"]] {
        let (code, stdout, stderr) = finish(&mut warren(arguments));
        assert_eq!((code, stderr.as_str()), (DONE, ""), "{arguments:?}");
        assert!(stdout.contains("warren"), "{arguments:?} says {stdout}");
    }
}

#[test]
fn missing_agent_is_reported_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let (code, stdout, stderr) = finish(warren(&["status", "--socket"]).arg(&socket));
    assert_eq!((code, stdout.as_str()), (FAILED, ""));
    assert_eq!(
        stderr,
        format!(
            "warren: the agent does not answer on {}; is warrend running on this node?: No such file or directory (os error 2)\n",
            socket.display()
        )
    );
}

#[test]
fn silent_agent_is_given_up_after_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("warren.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let (code, stdout, stderr) = finish(warren(&["status", "--timeout", "1", "--socket"]).arg(&socket));
    assert_eq!((code, stdout.as_str()), (FAILED, ""));
    assert!(stderr.contains("warren.sock within 1s; see its log, or wait longer with --timeout"), "{stderr}");
}

#[test]
fn socket_without_permission_names_the_group() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: changing to another user needs root");
        return;
    }
    let agent = Agent::start("200 OK", "{}".to_owned());
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(agent.folder.path(), 0o755);
    open(&agent.socket(), 0o660);
    // The built program may lie where only root can read, so that user nobody runs a copy.
    let program = agent.folder.path().join("warren");
    fs::copy(env!("CARGO_BIN_EXE_warren"), &program).unwrap();
    open(&program, 0o755);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    let (code, _, stderr) = finish(command.args(["status", "--socket"]).arg(agent.socket()));
    assert_eq!(code, FAILED);
    assert!(stderr.contains("run as root or join its group (warren)"), "{stderr}");
}

#[test]
fn api_error_is_shown_with_its_hint() {
    let body = r#"{"kind":"exhausted","message":"no address is free","hint":"add a pool"}"#;
    let agent = Agent::start("507 Insufficient Storage", body.to_owned());
    let (code, stdout, stderr) =
        finish(&mut agent.ask(&["endpoint", "add", "web-1", "--netns", "web", "-l", "app=web"]));
    assert_eq!((code, stdout.as_str()), (FAILED, ""));
    assert_eq!(stderr, "warren: no address is free (add a pool)\n");
}

#[test]
fn answer_of_another_version_is_reported() {
    let agent = Agent::start("200 OK", r#"{"items":7}"#.to_owned());
    let (code, _, stderr) = finish(&mut agent.ask(&["node", "list"]));
    assert_eq!(code, FAILED);
    assert!(stderr.contains("is it of another version?"), "{stderr}");
}

#[test]
fn state_diff_exits_1_unless_differences_are_repaired() {
    let check = |body: &str, expected: i32| {
        let agent = Agent::start("200 OK", body.to_owned());
        let (code, _, stderr) = finish(&mut agent.ask(&["state", "diff"]));
        assert_eq!((code, stderr.as_str()), (expected, ""), "{body}");
    };
    check(r#"{"differences":[],"repaired":false}"#, DONE);
    check(r#"{"differences":["ipcache 10.0.0.1/32: missing"],"repaired":false}"#, FAILED);
    check(r#"{"differences":["ipcache 10.0.0.1/32: missing"],"repaired":true}"#, DONE);
}

#[test]
fn doctor_needs_no_agent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let ask = |output: &str| finish(warren(&["doctor", "-o", output, "--socket"]).arg(&socket));
    let (code, stdout, stderr) = ask("json");
    assert_eq!(stderr, "");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, if report["counts"]["fail"] == 0 { DONE } else { FAILED }, "{stdout}");
    let findings = report["findings"].as_array().unwrap();
    let verdict = |name: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == name);
        finding.unwrap_or_else(|| panic!("{name} is missing: {stdout}"))["verdict"].as_str().unwrap()
    };
    assert_eq!(verdict("kernel"), "ok", "{stdout}");
    assert_eq!([verdict("agent"), verdict("etcd-version")], ["unknown"; 2], "{stdout}");
    for finding in findings {
        assert_eq!(finding["verdict"] == "ok", finding.get("remedy").is_none(), "{finding}");
    }
    let (_, table, _) = ask("table");
    assert!(table.contains("?    agent") && table.contains("do: "), "{table}");
}

#[test]
fn doctor_exits_1_if_a_check_fails() {
    // An agent that listens, but answers with an error.
    let body = r#"{"kind":"internal","message":"the core is gone"}"#;
    let agent = Agent::start("500 Internal Server Error", body.to_owned());
    let (code, stdout, stderr) = finish(&mut agent.ask(&["doctor"]));
    assert_eq!((code, stderr.as_str()), (FAILED, ""));
    assert!(stdout.contains("FAIL agent            the core is gone\n"), "{stdout}");
}

#[test]
fn json_output_is_the_agents_answer() {
    let body = r#"{"items":[{"reason":"forwarded","direction":"egress","packets":7,"bytes":98}],"total":1}"#;
    let agent = Agent::start("200 OK", body.to_owned());
    let (code, stdout, _) = finish(&mut agent.ask(&["drops", "-o", "json"]));
    assert_eq!(code, DONE);
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(value(&stdout), value(body));
}

#[test]
fn closed_output_pipe_is_no_failure() {
    let row = r#"{"reason":"forwarded","direction":"egress","packets":7,"bytes":98}"#;
    // The output is far larger than a pipe's buffer.
    let body = format!(r#"{{"items":[{}],"total":20000}}"#, vec![row; 20_000].join(","));
    let agent = Agent::start("200 OK", body);
    for output in ["table", "json"] {
        let mut child = agent
            .ask(&["drops", "-o", output])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 16]).unwrap();
        let finished = child.wait_with_output().unwrap();
        assert_eq!(finished.status.code(), Some(DONE), "{output}");
        assert_eq!(String::from_utf8(finished.stderr).unwrap(), "", "{output}");
    }
}

#[test]
fn completion_to_a_closed_pipe_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let finished = warren(&["completion", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(finished.status.code(), Some(DONE));
    assert_eq!(String::from_utf8(finished.stderr).unwrap(), "");
}

const MANIFEST: &str = "apiVersion: warren/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n  ports: [{port: 80}]\n";

fn in_file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn apply_takes_a_manifest_and_a_folder_of_manifests() {
    let body = r#"{"name":"web","outcome":"created","virtual_ip":"10.201.0.5","node_ports":[],"revision":7}"#;
    let agent = Agent::start("200 OK", body.to_owned());
    let (folder, path) = in_file("web.yaml", MANIFEST);
    fs::write(folder.path().join("README.md"), "no manifest").unwrap();
    for place in [&path, folder.path()] {
        let (code, stdout, stderr) = finish(agent.ask(&["apply", "-f"]).arg(place));
        assert_eq!((code, stderr.as_str()), (DONE, ""));
        assert_eq!(stdout, "service web created: virtual IP 10.201.0.5\n");
    }
    let (_, stdout, _) = finish(agent.ask(&["apply", "-o", "json", "-f"]).arg(&path));
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["items"][0]["outcome"], "created");
}

/// The agent gets no request if there is no valid manifest.
#[test]
fn manifest_mistake_exits_2_and_is_reported_with_file_and_line() {
    let check = |text: &str, expected: &str| {
        let (_folder, path) = in_file("web.yaml", text);
        for command in ["apply", "diff", "delete"] {
            let (code, stdout, stderr) = finish(warren(&[command, "--socket", "/nowhere", "-f"]).arg(&path));
            assert_eq!((code, stdout.as_str()), (WRONG_USAGE, ""), "{stderr}");
            assert!(stderr.contains(&expected.replace("FILE", &path.display().to_string())), "{stderr}");
        }
    };
    check("kind: Pod\n", "warren: FILE: line 1, column 7: kind: unknown variant `Pod`");
    check(
        &MANIFEST.replace("port: 80", "port: 80, nodePort: some"),
        "FILE: line 6, column 32: nodePort \"some\" is not valid",
    );
    check(
        &MANIFEST.replace("port: 80", "port: 0"),
        "FILE: line 1: service web: spec.ports[0].port: 0 is none",
    );
    check("# nothing\n", "no manifest in FILE");
    check(&format!("{MANIFEST}---\n{MANIFEST}"), "service web is defined twice: in FILE");
    check(&"#".repeat(9 << 20), "the limit is 8388608");
    let (code, _, stderr) = finish(&mut warren(&["apply", "-f", "/no/such/file.yaml"]));
    assert_eq!(code, WRONG_USAGE);
    assert!(stderr.contains("open /no/such/file.yaml: No such file"), "{stderr}");
    let (code, _, stderr) = finish(&mut warren(&["apply", "-f", "-"]));
    assert_eq!((code, stderr.as_str()), (WRONG_USAGE, "warren: no manifest in the standard input\n"));
    let (folder, path) = in_file("a.yaml", MANIFEST);
    let other = folder.path().join("b.yaml");
    fs::write(&other, MANIFEST).unwrap();
    let (code, _, stderr) = finish(warren(&["apply", "-f"]).arg(folder.path()));
    let both =
        format!("warren: service web is defined twice: in {} and in {}\n", path.display(), other.display());
    assert_eq!((code, stderr), (WRONG_USAGE, both));
}

#[test]
fn manifest_mistakes_do_not_affect_the_other_manifests() {
    let body = r#"{"name":"web","outcome":"created","virtual_ip":"10.201.0.5","node_ports":[],"revision":7}"#;
    let agent = Agent::start("200 OK", body.to_owned());
    let named = |name: &str| MANIFEST.replace("{name: web}", &format!("{{name: {name}}}"));
    let bad = named("bad").replace("port: 80", "port: 0");
    let (folder, first) =
        in_file("1.yaml", &[named("a"), bad, named("b"), "kind: Pod\n".to_owned()].join("---\n"));
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("2.yaml", "[");
    write("3.yaml", &[named("c"), named("twice")].join("---\n"));
    write("4.yaml", &named("twice"));
    fs::write(folder.path().join("5.yaml"), b"\xff").unwrap();
    let places = [folder.path().to_owned(), "/no/such/folder".into(), first.with_file_name("6.yml")];
    write("6.yml", &named("d"));
    let mut command = agent.ask(&["apply", "-o", "json"]);
    command.args(places.iter().flat_map(|place| ["-f".as_ref(), place.as_os_str()]));
    let (code, stdout, stderr) = finish(&mut command);
    assert_eq!(code, WRONG_USAGE);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["items"].as_array().unwrap().len(), 3, "a, b and c: {stdout}");
    let found: Vec<String> =
        stderr.lines().map(|line| line.replace(&format!("{}/", folder.path().display()), "")).collect();
    let expected = [
        "warren: 1.yaml: line 8: service bad: spec.ports[0].port: 0 is none",
        "warren: 1.yaml: line 22, column 7: kind: unknown variant `Pod`",
        "warren: 2.yaml: line ",
        "warren: read 5.yaml: ",
        "warren: open /no/such/folder: No such file",
        "warren: service d is defined twice: in 6.yml",
        "warren: service twice is defined twice: in 3.yaml and in 4.yaml",
    ];
    assert_eq!(found.len(), expected.len(), "{stderr}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found:?} is not {expected:?}");
    }
}

#[test]
fn apply_fails_if_the_agent_rejects_a_manifest() {
    let body = r#"{"kind":"conflict","message":"address 10.201.0.5 belongs to service db"}"#;
    let agent = Agent::start("409 Conflict", body.to_owned());
    let (_folder, path) = in_file("web.yaml", MANIFEST);
    let (code, stdout, stderr) = finish(agent.ask(&["apply", "-f"]).arg(&path));
    assert_eq!((code, stdout.as_str()), (FAILED, ""));
    assert_eq!(stderr, "warren: service web: address 10.201.0.5 belongs to service db\n");
}

fn many(count: usize) -> (tempfile::TempDir, PathBuf) {
    let manifests: Vec<String> =
        (0..count).map(|number| MANIFEST.replace("web}", &format!("web-{number}}}"))).collect();
    in_file("many.yaml", &manifests.join("---\n"))
}

#[test]
fn apply_stops_after_some_answers_that_the_store_is_unavailable() {
    let body = r#"{"kind":"unavailable","message":"etcd is away"}"#;
    let agent = Agent::start("503 Service Unavailable", body.to_owned());
    let (_folder, path) = many(300);
    let (code, stdout, stderr) = finish(agent.ask(&["apply", "-f"]).arg(&path));
    assert_eq!((code, stdout.as_str()), (FAILED, ""));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines[..10].iter().all(|line| line.ends_with(": etcd is away")), "{stderr}");
    assert_eq!(
        lines[10..],
        [
            "warren: the store is unavailable",
            "warren: 0 of 300 done, 10 rejected, 290 not done or unknown: repeat the command"
        ]
    );
    let (_folder, path) = many(2);
    let (_, _, stderr) = finish(agent.ask(&["apply", "-f"]).arg(&path));
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

#[test]
fn apply_reports_its_progress_when_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("warren.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (_folder, path) = many(2);
    let mut command = warren(&["apply", "--socket"]);
    command.arg(&socket).arg("-f").arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The request arrives, and gets no answer.
    let _silent = listener.accept().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let finished = child.wait_with_output().unwrap();
    assert_eq!(finished.status.code(), Some(FAILED));
    assert_eq!(
        String::from_utf8(finished.stderr).unwrap(),
        "warren: interrupted\nwarren: 0 of 2 done, 0 rejected, 2 not done or unknown: repeat the command\n"
    );
}

#[test]
fn diff_exits_1_if_apply_would_change_something() {
    let spec = r#"{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80}],"selector":{"matchLabels":{"app":"web"}},"algorithm":"maglev"}"#;
    let service =
        format!(r#"{{"name":"web","virtual_ip":"10.201.0.5","revision":7,"spec":{spec},"ports":[]}}"#);
    let agent = Agent::start("200 OK", service);
    let (_folder, path) = in_file("web.yaml", MANIFEST);
    let (code, stdout, _) = finish(agent.ask(&["diff", "-f"]).arg(&path));
    assert_eq!((code, stdout.as_str()), (DONE, "nothing to change\n"));
    fs::write(&path, MANIFEST.replace("port: 80", "port: 81")).unwrap();
    let (code, stdout, _) = finish(agent.ask(&["diff", "-f"]).arg(&path));
    assert_eq!(code, FAILED);
    assert!(stdout.contains("\n-     port: 80\n") && stdout.contains("\n+     port: 81\n"), "{stdout}");
    let (code, stdout, _) = finish(agent.ask(&["get", "service"]).arg("web"));
    assert_eq!(code, DONE);
    fs::write(&path, stdout).unwrap();
    let (code, stdout, _) = finish(agent.ask(&["diff", "-f"]).arg(&path));
    assert_eq!((code, stdout.as_str()), (DONE, "nothing to change\n"));
}
