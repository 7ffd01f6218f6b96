import os

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path

PAGE = """<!doctype html>
<title>Django in {software}</title>
<h1>Django in {software}</h1>
<p>Process {pid}. <a href="/admin/">The admin</a>: user admin, password admin.
"""


def front(request):
    return HttpResponse(PAGE.format(software=request.META.get("SERVER_SOFTWARE", "?"), pid=os.getpid()))


urlpatterns = [path("", front), path("admin/", admin.site.urls)]
