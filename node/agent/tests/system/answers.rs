//! Wrong requests, and the pages for machines.

use node_api::{ApiError, ErrorKind};

use crate::stage::{Stage, text};

const JSON: &str = "content-type: application/json\r\n";

#[test]
fn invalid_requests_get_their_status_and_a_text() {
    let Some(stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let check = |request: (&str, &str, &str, &[u8]), kind: ErrorKind, part: &str| {
        let (method, path, headers, body) = request;
        let (status, answer) = stage.raw(method, path, headers, body);
        let error: ApiError =
            serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"));
        assert_eq!((status, error.kind), (kind.status(), kind), "{path}: {answer}");
        assert!(error.to_string().contains(part), "{path}: {answer}");
    };
    let long = vec![b' '; node_api::MAX_BODY_BYTES + 1];
    let netns = |path: &str| format!(r#"{{"name":"x","attachment":{{"netns":{{"path":"{path}"}}}}}}"#);
    let post = "/v1/endpoints";
    check(("GET", "/v1/nothing", "", b""), ErrorKind::NotFound, "warrend openapi");
    check(("PUT", post, "", b""), ErrorKind::MethodNotAllowed, "method");
    check(("POST", post, JSON, b"{"), ErrorKind::Invalid, "EOF");
    check(("POST", post, "", b"{}"), ErrorKind::Invalid, "Content-Type");
    check(("POST", post, JSON, br#"{"name":"Web 1"}"#), ErrorKind::Invalid, "use a-z");
    check(("POST", post, JSON, br#"{"name":"x","colour":1}"#), ErrorKind::Invalid, "unknown field `colour`");
    check(("POST", post, JSON, br#"{"name":"x","labels":{"a b":"c"}}"#), ErrorKind::Invalid, "label key");
    check(("POST", post, JSON, &long), ErrorKind::TooLarge, "65536");
    check(("POST", post, JSON, netns("/run/netns/gone").as_bytes()), ErrorKind::Invalid, "/run/netns/gone");
    let fifo = stage.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = netns(fifo.to_str().unwrap());
    check(("POST", post, JSON, fifo.as_bytes()), ErrorKind::Invalid, "is no network namespace");
    check(("GET", "/v1/endpoints/none", "", b""), ErrorKind::NotFound, "none");
    check(("GET", "/v1/endpoints/No%20Name", "", b""), ErrorKind::Invalid, "use a-z");
    check(("GET", "/v1/maps/none", "", b""), ErrorKind::NotFound, "WARREN_IPC_V4");
    check(("GET", "/v1/observe?folow=true", "", b""), ErrorKind::Invalid, "unknown field `folow`");
    check(("GET", "/v1/observe?reason=bad-luck", "", b""), ErrorKind::Invalid, "bad-luck");
    check(("GET", "/v1/flows?from=Web%201", "", b""), ErrorKind::Invalid, "is not a filter");
    check(("DELETE", "/v1/cidrs/10.42.0.1-24", "", b""), ErrorKind::Invalid, "10.42.3.0-24");
    check(("DELETE", "/v1/nodes/none", "", b""), ErrorKind::NotFound, "none");
    check(("POST", "/v1/state/diff?repair=perhaps", "", b""), ErrorKind::Invalid, "repair");
    agent.stop();
}

#[test]
fn metrics_and_health_are_on_loopback() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    stage.add_endpoint("web");
    let get = |path: &str| {
        text(&stage.output(stage.node(), "curl", &["-s", &format!("http://127.0.0.1:9964{path}")]))
    };
    let page = get("/metrics");
    assert!(page.contains("\nwarren_endpoints 1.0\n") && page.ends_with("# EOF\n"), "{page}");
    assert_eq!(get("/healthz"), r#"{"status":"ok","reasons":[]}"#);
    agent.stop();
}
