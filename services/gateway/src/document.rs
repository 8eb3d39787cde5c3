//! `/openapi.json`: what all operations have in common, added to what the handlers declare.

use api_keys::Scope;
use utoipa::{
    OpenApi,
    openapi::{
        Content, Header, KnownFormat, ObjectBuilder, Ref, RefOr, Response, SchemaFormat,
        link::Link,
        path::Operation,
        schema::{Schema, Type},
        security::{
            ClientCredentials, Flow, HttpAuthScheme, HttpBuilder, OAuth2, OpenIdConnect, Scopes,
            SecurityRequirement, SecurityScheme,
        },
    },
};

use crate::{
    identity::{IdentitySettings, development, discovery_url},
    problem::Problem,
};

/// The security scheme that operations name.
const ACCESS_TOKEN: &str = "accessToken";
/// The other one, which each of them accepts with the same scopes.
const API_KEY: &str = "apiKey";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sagacity",
        description = "Orders, followed through payment and stock to their end.\n\n\
            Errors are RFC 9457 problem documents: `field` names the part of the request that is \
            wrong, `retry_safe` says whether the same request may be sent again. Methods that a \
            path does not support are answered with 405 and `Allow`.\n\n\
            Every response carries `x-correlation-id`. A request may send its own: a UUID."
    ),
    components(schemas(Problem)),
    tags((name = "orders"), (name = "products")),
)]
struct Document;

/// What can happen to every request.
const COMMON_PROBLEMS: [(&str, &str); 7] = [
    ("400", "The request is invalid; `field` names the part"),
    ("401", "The access token is missing or not valid"),
    ("408", "The body did not arrive in time"),
    ("429", "The caller sends too many requests"),
    ("500", "An unexpected error"),
    ("503", "A service behind the API is unavailable"),
    ("504", "A service behind the API did not respond in time"),
];

/// What a client can do with an order that it has created.
const LINKS_FROM_CREATE_ORDER: [&str; 4] =
    ["get_order", "get_timeline", "watch_order", "cancel_order"];

/// The document without paths; the router adds them.
pub fn base() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The document with what the handlers need not repeat.
pub fn complete(
    mut document: utoipa::openapi::OpenApi,
    identity: &IdentitySettings,
) -> utoipa::openapi::OpenApi {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(ACCESS_TOKEN, security_scheme(identity));
    let has_keys = identity.api_keys.path().is_some();
    if has_keys {
        components.add_security_scheme(API_KEY, api_key_scheme());
    }
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            add_responses(operation);
            if has_keys {
                add_api_key(operation);
            }
        }
    }
    document
}

/// How to get an access token.
fn security_scheme(identity: &IdentitySettings) -> SecurityScheme {
    if let Some(issuer) = identity.issuer() {
        let discovery = OpenIdConnect::new(discovery_url(issuer));
        return SecurityScheme::OpenIdConnect(discovery);
    }
    let scopes = Scope::OF_CUSTOMERS.map(|scope| (scope.name(), scope.description()));
    let flow = ClientCredentials::new(development::PATH, Scopes::from_iter(scopes));
    SecurityScheme::OAuth2(OAuth2::with_description(
        [Flow::ClientCredentials(flow)],
        "The development issuer. The client id is the customer: any name, for example a UUID. \
         The secret does not matter.",
    ))
}

fn api_key_scheme() -> SecurityScheme {
    let description = "A key that the operators have given to a machine. It acts for one customer.";
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let bearer = bearer.bearer_format("sagacity_<id>_<secret>");
    SecurityScheme::Http(bearer.description(Some(description)).build())
}

/// Where an access token is accepted, a key with the same scopes is.
fn add_api_key(operation: &mut Operation) {
    let Some(security) = &mut operation.security else {
        return;
    };
    // A requirement shows its scopes only as JSON.
    let same = security.iter().filter_map(|requirement| {
        let requirement = serde_json::to_value(requirement).ok()?;
        let scopes = requirement.get(ACCESS_TOKEN)?.as_array()?;
        let scopes = scopes.iter().filter_map(|scope| scope.as_str());
        Some(SecurityRequirement::new(API_KEY, scopes))
    });
    let same: Vec<_> = same.collect();
    security.extend(same);
}

fn add_responses(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let problems = COMMON_PROBLEMS.into_iter();
    let scope = operation
        .security
        .as_ref()
        .map(|_| ("403", "The access token lacks the scope"));
    for (status, description) in problems.chain(scope) {
        let response = || Response::new(description).into();
        responses.entry(status.to_owned()).or_insert_with(response);
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else {
            continue;
        };
        let uuid = string().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
        add_header(
            response,
            "x-correlation-id",
            "Finds the request in logs",
            uuid,
        );
        if status.as_str() >= "400" {
            let problem = Content::new(Some(Ref::from_schema_name("Problem")));
            let content = &mut response.content;
            content.insert("application/problem+json".to_owned(), problem.into());
        }
        match status.as_str() {
            "401" | "403" => {
                let description = "RFC 6750: what is wrong with the access token";
                add_header(response, "WWW-Authenticate", description, string());
            }
            "201" => describe_created(response),
            "429" | "503" => {
                let seconds = ObjectBuilder::new().schema_type(Type::Integer);
                add_header(response, "Retry-After", "Seconds", seconds);
            }
            _ => {}
        }
    }
}

fn describe_created(response: &mut Response) {
    let path = string().format(Some(SchemaFormat::Custom("uri-reference".to_owned())));
    add_header(response, "Location", "The path of the order", path);
    let replayed = string().enum_values(Some(["true"]));
    let description = "There if the order was created by an earlier request";
    add_header(response, "Idempotent-Replayed", description, replayed);
    for operation in LINKS_FROM_CREATE_ORDER {
        let link = Link::builder()
            .operation_id(operation)
            .parameter("path.id", "$response.body#/id")
            .build();
        response.links.insert(operation.to_owned(), link.into());
    }
}

fn add_header(response: &mut Response, name: &str, description: &str, schema: ObjectBuilder) {
    let mut header = Header::new(Schema::from(schema));
    header.description = Some(description.to_owned());
    response.headers.insert(name.to_owned(), header.into());
}

fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}
