//! The bearer token that guards `/v1/*`.

use std::{fmt, hint::black_box, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};

/// A token that requests must show. Its `Debug` tells nothing.
#[derive(Clone)]
pub struct BearerToken(Arc<[u8]>);

impl BearerToken {
    /// Surrounding white space is no part of it (files end in a newline); an empty token is none.
    pub fn new(token: &str) -> Option<BearerToken> {
        let token = token.trim();
        (!token.is_empty()).then(|| BearerToken(token.as_bytes().into()))
    }

    /// Compares in a time that depends on the length of `given` alone.
    fn admits(&self, given: &[u8]) -> bool {
        let mut difference = self.0.len() ^ given.len();
        for (i, byte) in given.iter().enumerate() {
            difference |= usize::from(byte ^ self.0[i % self.0.len()]);
        }
        black_box(difference) == 0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(…)")
    }
}

/// The same routes, for who shows the token; 401 for others, whatever path below they ask for.
pub fn guarded(router: Router, token: BearerToken) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        let token = token.clone();
        async move { if admitted(&token, &request) { next.run(request).await } else { refusal() } }
    }))
}

fn admitted(token: &BearerToken, request: &Request) -> bool {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else { return false };
    let Some((scheme, given)) = value.as_bytes().split_at_checked("Bearer ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"Bearer ") && token.admits(given)
}

fn refusal() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a bearer token is needed\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_admitted() {
        let token = BearerToken::new(" secret\n").unwrap();
        assert!(token.admits(b"secret"));
        for wrong in ["", "s", "secre", "secrets", "secretsecret", "Secret", "secret "] {
            assert!(!token.admits(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(BearerToken::new(" \n").is_none());
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[test]
    fn the_header_is_read_strictly() {
        let token = BearerToken::new("t0ken").unwrap();
        for (value, want) in [
            (Some("Bearer t0ken"), true),
            (Some("bearer t0ken"), true),
            (Some("Bearer  t0ken"), false),
            (Some("Bearer"), false),
            (Some("Basic t0ken"), false),
            (Some("t0ken"), false),
            (None, false),
        ] {
            let mut request = Request::new(axum::body::Body::empty());
            if let Some(value) = value {
                request.headers_mut().insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(admitted(&token, &request), want, "{value:?}");
        }
    }
}
