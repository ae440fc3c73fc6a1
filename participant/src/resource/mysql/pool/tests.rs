//! What a failed attempt to connect says of the server, and what is told to others.

use super::super::options::Address;
use super::*;

/// A pool for a server that takes connections and never says a word; it lives as long as its port
/// does.
fn silent() -> (Arc<Pool>, std::net::TcpListener) {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = port.local_addr().unwrap();
    let address = Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
    };
    let (pool, _) = Pool::new(Options::new("c", "p", address, "u"));
    assert!(pool.take_suspicion(), "nobody has looked yet");
    (pool, port)
}

#[tokio::test(start_paused = true)]
async fn a_callers_short_time_is_no_sign_of_a_server_that_is_down() {
    let (pool, _port) = silent();
    for class in [Class::Work, Class::Finish, Class::Control] {
        let soon = Deadline::now() + Duration::from_millis(100);
        let reason = pool.acquire_by(class, soon).await.unwrap_err();
        assert_eq!(&*reason.code, code::DEADLINE_EXCEEDED, "{reason}");
        assert!(!pool.is_suspect());
        assert!(lock(&pool.backoff).check().is_ok(), "others cannot try");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_for_the_pools_own_time_is_down() {
    let (pool, _port) = silent();
    let began = Deadline::now();
    let late = began + Duration::from_secs(60);
    let reason = pool.acquire_by(Class::Work, late).await.unwrap_err();
    assert_eq!(&*reason.code, code::SERVER_DOWN, "{reason}");
    assert!(began.elapsed() < CONNECT_TIMEOUT, "{:?}", began.elapsed());
    assert!(pool.is_suspect());
    let meanwhile = lock(&pool.backoff).check().unwrap_err();
    assert_eq!(&*meanwhile.code, code::SERVER_DOWN, "{meanwhile}");
}

#[tokio::test]
async fn a_server_that_refuses_is_down_at_once() {
    let (pool, port) = silent();
    drop(port);
    let soon = Deadline::now() + Duration::from_secs(1);
    let reason = pool.acquire_by(Class::Work, soon).await.unwrap_err();
    assert_eq!(&*reason.code, code::SERVER_DOWN, "{reason}");
    assert!(pool.is_suspect());
    assert!(lock(&pool.backoff).check().is_err());
}

#[test]
fn a_server_that_is_full_is_not_taken_for_one_that_is_down() {
    let (pool, _port) = silent();
    let full = Reason::new(code::POOL_EXHAUSTED, "Too many connections");
    lock(&pool.backoff).begin(&full);
    assert_eq!(lock(&pool.backoff).check(), Err(full));
}

#[test]
fn sessions_of_another_kind_are_a_new_generation() {
    let (pool, _port) = silent();
    let mut sessions = Sessions {
        statement: "SET x = 1".into(),
        detaches: false,
        keeps_socket: false,
    };
    let mut generations = vec![pool.generation()];
    let mut set = |sessions: &Sessions| {
        pool.set_sessions(sessions);
        generations.push(pool.generation());
    };
    set(&sessions);
    set(&sessions);
    sessions.detaches = true;
    set(&sessions);
    sessions.keeps_socket = true;
    set(&sessions);
    sessions.statement = "SET x = 2".into();
    set(&sessions);
    assert_eq!(generations, [0, 1, 1, 2, 3, 4]);
}
