//! Logging in.

use sqlx::mysql::{MySqlConnection, MySqlDatabaseError, MySqlSslMode};
use sqlx::{ConnectOptions as _, Connection as _};

use super::super::options::Options;

/// `ER_ACCESS_DENIED_ERROR`.
const ACCESS_DENIED: u16 = 1045;

/// Logs in. MySQL's `caching_sha2_password` wants the password itself once after each start of
/// the server, and the driver sends that over TLS only; from then on a challenge is enough,
/// which spares the unix socket TLS on every packet.
pub async fn login(options: &Options) -> Result<MySqlConnection, sqlx::Error> {
    let driver = options.driver();
    match driver.connect().await {
        Ok(raw) => Ok(raw),
        Err(error @ sqlx::Error::Io(_)) => Err(error),
        Err(error @ sqlx::Error::Database(_)) if !is_access_denied(&error) => Err(error),
        Err(error) if driver.get_socket().is_none() => Err(error),
        Err(error) => {
            let over_tls = driver.clone().ssl_mode(MySqlSslMode::Required);
            let Ok(first) = over_tls.connect().await else {
                return Err(error);
            };
            // It has served its purpose; how it ends does not matter. `close_hard` over TLS would
            // wait for the server to say something (sqlx 0.9.0: it flushes, and a flush that has
            // nothing to write reads), and the server waits for us.
            let _ = first.close().await;
            driver.connect().await
        }
    }
}

/// MySQL says so too when its cache is empty and the password did not come over TLS.
fn is_access_denied(error: &sqlx::Error) -> bool {
    let Some(answer) = error.as_database_error() else {
        return false;
    };
    answer
        .try_downcast_ref::<MySqlDatabaseError>()
        .is_some_and(|answer| answer.number() == ACCESS_DENIED)
}
