//! Settings: who issues access tokens, and which API keys there are.

use api_keys::ApiKeySettings;
use bootstrap::settings::Environment;
use clap::Args;

/// Who issues access tokens, and which API keys there are.
#[derive(Args, Clone, Debug)]
pub struct IdentitySettings {
    /// Issuer of access tokens: an OpenID Connect provider, for example
    /// https://login.example.com/realms/shop. Without it the gateway accepts the tokens of
    /// development, which anybody can issue; production needs it
    #[arg(
        long,
        env = "OIDC_ISSUER",
        default_value = "",
        hide_default_value = true
    )]
    pub issuer: String,
    /// Audience of access tokens: the name of this API at the issuer
    #[arg(long, env = "OIDC_AUDIENCE", default_value = development_issuer::AUDIENCE)]
    pub audience: String,
    #[command(flatten)]
    pub api_keys: ApiKeySettings,
}

impl IdentitySettings {
    /// The configured provider.
    pub fn issuer(&self) -> Option<&str> {
        Some(&*self.issuer).filter(|issuer| !issuer.is_empty())
    }

    /// Checks the issuer and the API keys.
    ///
    /// # Errors
    /// Names the setting and what is expected.
    pub fn validate(&self, environment: Environment) -> Result<(), String> {
        self.api_keys.validate()?;
        let production = environment == Environment::Production;
        let expected = match (self.issuer(), production) {
            (None, false) => return Ok(()),
            (None, true) => {
                "production needs an OpenID Connect provider; anybody can issue the tokens of \
                 development"
            }
            (Some(issuer), _) => match issuer.parse::<http::Uri>() {
                Ok(uri) if uri.query().is_none() && uri.host().is_some() => {
                    match uri.scheme_str() {
                        Some("https") => return Ok(()),
                        Some("http") if !production => return Ok(()),
                        _ => "expected https://host/path",
                    }
                }
                _ => "expected https://host/path",
            },
        };
        Err(format!("OIDC_ISSUER: {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_needs_a_provider_that_it_reaches_by_https() {
        let check = |issuer: &str, environment| {
            let settings = IdentitySettings {
                issuer: issuer.to_owned(),
                audience: "sagacity".to_owned(),
                api_keys: ApiKeySettings::default(),
            };
            settings.validate(environment)
        };
        use Environment::{Development, Production};
        assert_eq!(check("", Development), Ok(()));
        assert_eq!(
            check("http://localhost:8081/realms/shop", Development),
            Ok(())
        );
        assert_eq!(check("https://login.example.com", Production), Ok(()));
        for wrong in [
            "",
            "http://login.example.com",
            "login.example.com",
            "ftp://login",
            "https://",
        ] {
            let error = check(wrong, Production).unwrap_err();
            assert!(error.starts_with("OIDC_ISSUER: "), "{wrong}: {error}");
        }
    }
}
