//! What went wrong, as what to do about it.

use sqlx::sqlite::SqliteError;

/// The cause, for logs. It names no value of a row and no secret.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A call to the store failed. The variants are actions.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Away, starting, overloaded or full: nothing is wrong with the call. Try again later.
    #[error("the store does not answer")]
    Unavailable(#[source] Cause),
    /// Address, credentials, rights, TLS or schema are wrong: an operator must act, and a later try may then work.
    #[error("the store cannot be used as configured")]
    Misconfigured(#[source] Cause),
    /// This data will never be taken: do not try it again as it is.
    #[error("the store refuses the data ({0})")]
    Refused(String),
}

impl Error {
    pub(crate) fn timed_out(limit: std::time::Duration) -> Error {
        Error::Unavailable(format!("no answer within {limit:?}").into())
    }

    /// The error and its causes in one line, for logs and readiness.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(e) = cause {
            let words = e.to_string();
            if !text.ends_with(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            cause = e.source();
        }
        text
    }
}

impl From<sqlx::Error> for Error {
    fn from(e: sqlx::Error) -> Error {
        match e {
            sqlx::Error::Database(db) if db.try_downcast_ref::<SqliteError>().is_some() => by_sqlite_code(db),
            sqlx::Error::Database(db) => by_sqlstate(db),
            sqlx::Error::PoolTimedOut => Error::Unavailable("no connection to the database was to be had in time".into()),
            sqlx::Error::Tls(e) => tls(&e),
            // A certificate that is not believed.
            sqlx::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => tls(&e),
            sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Error::Refused("cannot be encoded".to_owned()),
            sqlx::Error::Io(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_)
            | sqlx::Error::BeginFailed => Error::Unavailable(e.into()),
            sqlx::Error::Migrate(m) => (*m).into(),
            other => Error::Misconfigured(other.into()),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(e: sqlx::migrate::MigrateError) -> Error {
        use sqlx::migrate::MigrateError;
        match e {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => match Error::from(e) {
                // There is no row in a migration whose data could be at fault.
                Error::Refused(code) => Error::Misconfigured(format!("a migration failed ({code})").into()),
                other => other,
            },
            other => Error::Misconfigured(other.into()),
        }
    }
}

fn tls(e: &dyn std::fmt::Display) -> Error {
    Error::Misconfigured(format!("{e}; in the address, sslrootcert names a private authority and sslmode asks for less").into())
}

/// PostgreSQL's error classes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn by_sqlstate(db: Box<dyn sqlx::error::DatabaseError>) -> Error {
    let code = db.code().map(|c| c.into_owned()).unwrap_or_default();
    match code.as_str() {
        // A standby, after a failover: the writable one will be back.
        "25006" => Error::Unavailable(db.into()),
        c => match c.get(..2).unwrap_or_default() {
            // Data exception, integrity constraint, program limit (an index row too large, more than 1 GB).
            // Only the code is shown: the words can quote the data.
            "22" | "23" | "54" => Error::Refused(format!("SQLSTATE {code}")),
            // Authorisation, no such database, syntax or access rule, invalid schema, not supported, bad configuration file.
            "28" | "3D" | "42" | "3F" | "0A" | "F0" => Error::Misconfigured(db.into()),
            // Connection, resources, intervention, system, rollback by conflict; and whatever else there may be.
            _ => Error::Unavailable(db.into()),
        },
    }
}

/// SQLite's result codes: <https://www.sqlite.org/rescode.html>. The low byte is the kind.
fn by_sqlite_code(db: Box<dyn sqlx::error::DatabaseError>) -> Error {
    let code = db.code().and_then(|c| c.parse::<u32>().ok()).unwrap_or_default();
    match code & 0xff {
        // TOOBIG, CONSTRAINT, MISMATCH. Only the code is shown: the words can quote the data.
        18..=20 => Error::Refused(format!("SQLite code {code}")),
        // ERROR (no such table), PERM, READONLY, CORRUPT, CANTOPEN, AUTH, NOTADB.
        1 | 3 | 8 | 11 | 14 | 23 | 26 => Error::Misconfigured(db.into()),
        // BUSY, LOCKED, NOMEM, IOERR, FULL, and whatever else there may be.
        _ => Error::Unavailable(db.into()),
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;

    #[tokio::test]
    async fn what_sqlite_says_becomes_what_to_do() {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql("create table t (a text not null check (a <> 'secret')) strict").execute(&mut db).await.unwrap();
        let mut said = async |sql: &'static str| Error::from(sqlx::raw_sql(sql).execute(&mut db).await.unwrap_err());
        for data in ["insert into t values (null)", "insert into t values ('secret')", "insert into t values (zeroblob(2e9))"] {
            let error = said(data).await;
            assert!(matches!(&error, Error::Refused(_)) && !error.in_full().contains("secret"), "{}", error.in_full());
        }
        for schema in ["select * from nothing", "pragma query_only = on; insert into t values ('a')"] {
            assert!(matches!(said(schema).await, Error::Misconfigured(_)), "{schema}");
        }
        let full = said("pragma query_only = off; pragma max_page_count = 4; insert into t values (hex(zeroblob(90000)))").await;
        assert!(matches!(full, Error::Unavailable(_)), "{}", full.in_full());
    }
}
