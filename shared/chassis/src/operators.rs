//! Who may use the routes of operators on an admin listener: holders of an API key with the scope
//! `operations`. All such routes are behind this one layer.

use api_keys::{ApiKeys, KeyId, Scope};
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::WWW_AUTHENTICATE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use bootstrap::{bearer, settings::Environment};
use serde_json::json;

/// Whom the routes of operators admit.
#[derive(Clone, Debug)]
pub(crate) enum Operators {
    /// In development without API keys.
    Anybody,
    /// In production without API keys.
    Nobody,
    WithKey(ApiKeys),
}

/// Who sends a request, for the audit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator {
    /// `None` in development without API keys.
    pub(crate) key: Option<KeyId>,
}

impl Operators {
    pub(crate) fn new(keys: Option<ApiKeys>, environment: Environment) -> Self {
        match (keys, environment) {
            (Some(keys), _) => Self::WithKey(keys),
            (None, Environment::Production) => Self::Nobody,
            (None, Environment::Development) => Self::Anybody,
        }
    }

    /// Lets only operators use `routes`.
    pub(crate) fn guard(self, routes: Router) -> Router {
        routes.route_layer(middleware::from_fn_with_state(self, check))
    }

    /// The operator, or status and text of the refusal.
    fn admit(&self, headers: &HeaderMap) -> Result<Operator, (StatusCode, &'static str)> {
        let keys = match self {
            Self::Anybody => return Ok(Operator { key: None }),
            Self::Nobody => {
                let missing = "production has no operators without API keys: set API_KEYS_FILE";
                return Err((StatusCode::FORBIDDEN, missing));
            }
            Self::WithKey(keys) => keys,
        };
        let needed = "send Authorization: Bearer, with an API key that has the scope operations";
        let needed = (StatusCode::UNAUTHORIZED, needed);
        let key = match bearer::token(headers) {
            Ok(Some(token)) => keys.verify(token).map_err(|refusal| refusal.to_string()),
            Ok(None) => return Err(needed),
            Err(reason) => Err(reason.to_owned()),
        };
        let key = key.map_err(|reason| {
            tracing::info!(
                reason,
                "an API key was refused at the routes of operators; the client gets 401"
            );
            needed
        })?;
        match key.scopes.contains(&Scope::Operations) {
            true => Ok(Operator { key: Some(key.id) }),
            false => {
                let lacks = "this API key does not have the scope operations";
                Err((StatusCode::FORBIDDEN, lacks))
            }
        }
    }
}

async fn check(State(operators): State<Operators>, mut request: Request, next: Next) -> Response {
    match operators.admit(request.headers()) {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err((status, error)) => {
            let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"sagacity\"")];
            (status, challenge, Json(json!({ "error": error }))).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_api_keys_operators_are_everybody_in_development_and_nobody_in_production() {
        let admit = |environment| Operators::new(None, environment).admit(&HeaderMap::new());
        assert!(admit(Environment::Development).is_ok());
        let refused = admit(Environment::Production).unwrap_err();
        assert_eq!(refused.0, StatusCode::FORBIDDEN);
        assert!(refused.1.contains("API_KEYS_FILE"));
    }
}
