//! A listener and its clients, with and without what they need. The certificates beside this file
//! are for `localhost`, last for a hundred years, and are trusted by nobody else.

use std::os::unix::fs::PermissionsExt;

use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::serve;

const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/cert.pem");
const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tls/ca.pem");

/// A configuration with everything, and the key's file: a checkout makes it readable by all.
fn complete() -> (TlsConfig, tempfile::TempPath) {
    let key = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    fs::write(&key, include_str!("key.pem")).unwrap();
    let config = TlsConfig {
        cert_file: Some(CERT.into()),
        key_file: Some(key.to_path_buf()),
        ca_file: Some(AUTHORITY.into()),
        ..TlsConfig::default()
    };
    (config, key)
}

async fn check(endpoint: Endpoint) -> Result<(), String> {
    let channel: Channel = endpoint
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    answer.map(|_| ()).map_err(|status| status.to_string())
}

#[tokio::test]
async fn a_listener_tells_its_clients_from_strangers() {
    let (config, _key) = complete();
    let (incoming, address) = serve::bind(([127, 0, 0, 1], 0).into(), "listen")
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .tls_config(config.server().unwrap().unwrap())
        .unwrap();
    let serving = tokio::spawn(async move {
        let mut server = server;
        server
            .add_service(health)
            .serve_with_incoming_shutdown(incoming, stopped)
            .await
    });

    let secure = || Endpoint::from_shared(format!("https://localhost:{}", address.port())).unwrap();
    let friend = secure()
        .tls_config(config.client().unwrap().unwrap())
        .unwrap();
    check(friend).await.expect("a client with a certificate");

    let nameless = TlsConfig {
        cert_file: None,
        key_file: None,
        ..config.clone()
    };
    let nameless = secure()
        .tls_config(nameless.client().unwrap().unwrap())
        .unwrap();
    check(nameless)
        .await
        .expect_err("a client without a certificate");

    let plain = Endpoint::from_shared(format!("http://{address}")).unwrap();
    check(plain).await.expect_err("a client without TLS");

    let misled = TlsConfig {
        server_name: Some("elsewhere".to_owned()),
        ..config
    };
    let misled = secure()
        .tls_config(misled.client().unwrap().unwrap())
        .unwrap();
    check(misled).await.expect_err("a server of another name");

    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[test]
fn nothing_configured_is_no_tls() {
    let config = TlsConfig::default();
    assert!(config.server().unwrap().is_none() && config.client().unwrap().is_none());
}

#[test]
fn half_a_configuration_is_refused_by_name() {
    let (complete, key) = complete();
    let refused = |config: TlsConfig| config.server().unwrap_err().to_string();
    let text = refused(TlsConfig {
        key_file: None,
        ..complete.clone()
    });
    assert!(
        text.contains("tls.cert_file") && text.contains("tls.key_file"),
        "{text}"
    );
    let text = refused(TlsConfig {
        ca_file: None,
        ..complete.clone()
    });
    assert!(text.contains("tls.ca_file"), "{text}");
    let text = refused(TlsConfig {
        cert_file: Some("/nonexistent".into()),
        ..complete.clone()
    });
    assert!(
        text.contains("/nonexistent") && text.contains("tls.cert_file"),
        "{text}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        complete.server(),
        Err(TlsError::Key(SecretError::Exposed { .. }))
    ));
}
