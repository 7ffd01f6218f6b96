"""A Django project of one view, with a parameter in its path and one in its query; no middleware, so that the server's
share of the time is seen."""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEBUG=False,
    LOGGING_CONFIG=None,
    MIDDLEWARE=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for a benchmark",
)


def item(request, number):
    return HttpResponse(f"item {number}, page {request.GET['page']}\n", content_type="text/plain")


urlpatterns = [path("items/<int:number>", item)]
application = get_wsgi_application()
