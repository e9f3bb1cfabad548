//! Probes over real sockets on loopback.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Long, since only tests of silence wait for it to end.
const PATIENT: Duration = Duration::from_secs(20);
const HASTY: Duration = Duration::from_millis(50);

/// A server that sends this response to every client, and the requests that it received.
async fn server(answer: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut question = vec![0; 4_096];
                let length = client.read(&mut question).await.unwrap_or(0);
                drop(asked.send(String::from_utf8_lossy(&question[..length]).into_owned()));
                drop(client.write_all(answer).await);
            });
        }
    });
    (address, questions)
}

async fn page(at: SocketAddr, host: Option<&str>) -> Result<(), String> {
    let probe = Question::Http { path: "/healthz?a=1".to_owned(), host: host.map(str::to_owned) };
    ask(&ProbeTarget::Backend { at, probe }, PATIENT).await
}

#[tokio::test]
async fn http_probe_result_is_the_status() {
    let check = async |answer: &'static [u8], expected: Result<(), &str>| {
        let (at, _questions) = server(answer).await;
        assert_eq!(page(at, None).await, expected.map_err(str::to_owned));
    };
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ok(())).await;
    check(b"HTTP/1.0 302 Found\r\n\r\n", Ok(())).await;
    check(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Err("status 503")).await;
    check(b"HTTP/1.1 404\r\n\r\n", Err("status 404")).await;
    check(b"HTTP/1.1 1", Err("no HTTP answer")).await;
    check(b"SSH-2.0-OpenSSH_9.2\r\n", Err("no HTTP answer")).await;
    check(b"HTTP/1.1 -20 OK", Err("no HTTP answer")).await;
    check(b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff\xfe", Err("no HTTP answer")).await;
    check(b"", Err("no HTTP answer")).await;
}

#[tokio::test]
async fn http_probe_sends_path_and_host_of_its_spec() {
    let (at, mut questions) = server(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    page(at, Some("web.example")).await.unwrap();
    let question = questions.recv().await.unwrap();
    assert!(question.starts_with("GET /healthz?a=1 HTTP/1.1\r\nHost: web.example\r\n"), "{question}");
    page(at, None).await.unwrap();
    let question = questions.recv().await.unwrap();
    assert!(question.contains(&format!("\r\nHost: {at}\r\n")), "{question}");
}

#[tokio::test]
async fn tcp_probe_succeeds_with_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let target = ProbeTarget::Backend { at, probe: Question::Tcp };
    assert_eq!(ask(&target, PATIENT).await, Ok(()));
    drop(listener);
    assert_eq!(ask(&target, PATIENT).await, Err("connection refused".to_owned()));
}

#[tokio::test]
async fn probe_of_a_silent_peer_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let probe = Question::Http { path: "/".to_owned(), host: None };
    let answer = ask(&ProbeTarget::Backend { at, probe }, HASTY).await;
    assert_eq!(answer, Err("no answer in 50ms".to_owned()));
}

#[tokio::test]
async fn echo_probe_is_answered_by_the_kernel() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    assert_eq!(ask(&ProbeTarget::Node([127, 0, 0, 1].into()), PATIENT).await, Ok(()));
    // TEST-NET-3 (RFC 5737).
    assert!(ask(&ProbeTarget::Node([203, 0, 113, 1].into()), HASTY).await.is_err());
}

#[tokio::test]
async fn prober_reports_every_probe_once() {
    let (core, mut inputs) = Core::channel();
    let (prober, run) = Prober::new(core, Arc::new(Metrics::new()));
    let task = tokio::spawn(run);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let probe = |id| Probe {
        id: ProbeId(id),
        target: ProbeTarget::Backend { at, probe: Question::Tcp },
        timeout: PATIENT,
    };
    const COUNT: u64 = 2 * MAX_AT_ONCE as u64;
    prober.ask((0..COUNT).map(probe).collect());
    let accept = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let mut told = std::collections::BTreeSet::new();
    while told.len() < COUNT as usize {
        match inputs.recv().await.expect("the prober runs") {
            super::super::Input::Event(Event::Probed(answers)) => {
                for (id, answer) in answers {
                    assert_eq!(answer, Ok(()));
                    assert!(told.insert(id), "{id:?} is answered twice");
                }
            }
            _ => panic!("something else than answers"),
        }
    }
    drop(prober);
    task.await.unwrap().unwrap();
    accept.abort();
}
